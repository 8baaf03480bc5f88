"use strict";
// Shows the worker's VMs and looks again every two seconds. Text only: nothing a VM says becomes markup.
const EVERY_MS = 2000;
const KIND = {
  "running": "good", "suspended": "off", "halted": "off", "starting": "busy", "installing": "busy",
  "saving": "busy", "failed to start": "bad", "failed to save": "bad",
};
const $ = (id) => document.getElementById(id);
let timer = null;

function cell(row, text, kind) {
  const td = row.insertCell();
  td.textContent = text;
  if (kind) td.className = kind;
  return td;
}

function ago(iso) {
  const s = Math.max(0, Math.round((Date.now() - Date.parse(iso)) / 1000));
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h`;
  return `${Math.floor(s / 86400)} d`;
}

// Each refresh makes the table again. console.js learns of a click and of each VM's state by these events.
function consoleButton(vm) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = vm.status === "installing" ? "Install log" : "Console";
  button.setAttribute("aria-label", `${button.textContent} of ${vm.name}`);
  button.addEventListener("click", () => document.dispatchEvent(new CustomEvent("console", { detail: vm })));
  return button;
}

function show(reply) {
  document.dispatchEvent(new CustomEvent("vms", { detail: reply.vmachines }));
  const rows = $("rows");
  rows.replaceChildren();
  for (const vm of reply.vmachines) {
    const row = rows.insertRow();
    const spec = vm.spec || {};
    cell(row, vm.name).title = vm.uuid;
    cell(row, vm.status, `state ${KIND[vm.status] || "off"}`);
    const message = cell(row, vm.problem && vm.problem !== vm.message ? `${vm.message} ${vm.problem}` : vm.message);
    const ends = Object.entries(vm.disks || {}).filter(([, disk]) => disk.fate?.startsWith("will be"));
    message.append(ends.map(([name, disk]) => ` ${name} ${disk.fate}.`).join(""));
    if (vm.progress) {
      const bar = document.createElement("progress");
      bar.setAttribute("aria-label", vm.progress.phase);
      if (vm.progress.total) { bar.max = vm.progress.total; bar.value = vm.progress.done || 0; }
      message.append(bar, vm.progress.phase);
    }
    cell(row, `${spec.mem_size || 512} MiB`);
    cell(row, spec.cpu_count || 1);
    cell(row, ago(vm.since)).title = vm.since;
    const last = row.insertCell();
    if (["running", "suspended", "installing"].includes(vm.status)) last.append(consoleButton(vm));
  }
  const free = reply.capacity;
  $("none").hidden = reply.vmachines.length > 0;
  $("foreign").textContent = reply.foreign.length
    ? `Domains of others, never touched: ${reply.foreign.map((d) => `${d.name} (${d.state})`).join(", ")}`
    : "";
  $("summary").textContent = `${reply.vmachines.length} VMs · ${free.mem_free} of ${free.mem_total} MiB memory free · ` +
    `${(free.disk_free / 2 ** 30).toFixed(1)} GiB disk free · version ${reply.version}`;
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

async function look() {
  clearTimeout(timer);
  const token = sessionStorage.getItem("token");
  $("login").hidden = Boolean(token);
  $("leave").hidden = $("vms").hidden = !token;
  if (!token) { $("summary").textContent = ""; return; }
  try {
    const answer = await fetch("vmachines/list", { headers: { Authorization: `Bearer ${token}` } });
    const reply = await answer.json();
    if (answer.status === 401) { sessionStorage.removeItem("token"); trouble("This worker does not know that token."); return look(); }
    trouble(reply.success ? "" : reply.message);
    if (reply.success) show(reply);
  } catch {
    trouble("The worker does not answer. What is shown is what was last seen; it is asked again.");
  }
  timer = setTimeout(look, EVERY_MS);
}

$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value.trim());
  $("token").value = "";
  trouble("");
  look();
});
$("leave").addEventListener("click", () => { sessionStorage.removeItem("token"); trouble(""); look(); });
look();
