// One VM's console: a ticket by POST, then VNC over a websocket. While software is being installed, the log of that;
// an administrator may look at the screen meanwhile.
const $ = (id) => document.getElementById(id);
const view = $("console-view");
let rfb = null;
let shown = null; // the VM
let logging = false; // whether its log is shown in the place of its screen

function say(text) { $("console-state").textContent = text; }

function disconnect() {
  const old = rfb;
  rfb = null;
  if (old) old.disconnect();
  view.replaceChildren();
}

async function ask(method, path, body) {
  const headers = { "Authorization": `Bearer ${sessionStorage.getItem("token")}` };
  if (body) headers["Content-Type"] = "application/json";
  const answer = await fetch(path, { method, headers, body: body && JSON.stringify(body) });
  const reply = await answer.json();
  if (!reply.success) throw new Error(reply.message);
  return reply;
}

async function connect(vm) {
  disconnect();
  say("Opening its console.");
  try {
    const { default: RFB } = await import("./novnc/core/rfb.js").catch(() => {
      throw new Error("noVNC is not installed here. In a clone, `make setup` fetches it.");
    });
    const only = $("console-only").checked;
    const { ticket } = await ask("POST", "vmachines/screen", { uuid: vm.uuid, view_only: only });
    const place = new URL(`vmachines/${vm.uuid}/screen`, location.href.replace("http", "ws"));
    // The ticket is a subprotocol: in the URL it would end in logs. noVNC does not tell why the other end closed; a
    // websocket of one's own does.
    const socket = new WebSocket(place, ["binary", `ticket.${ticket}`]);
    let reason = "The connection broke. Close this and open it again.";
    socket.addEventListener("close", (event) => { reason = event.reason || reason; });
    const made = new RFB(view, socket, { shared: true });
    rfb = made;
    made.viewOnly = only;
    made.scaleViewport = true;
    made.background = "#000";
    made.addEventListener("connect", () => { say(only ? "Connected; keys and pointer stay here." : "Connected."); made.focus(); });
    made.addEventListener("disconnect", () => { if (rfb === made) say(reason); });
  } catch (err) {
    say(err.message);
  }
}

function entry(software) {
  const line = document.createElement("li");
  line.textContent = [software.name, software.version, software.state].filter(Boolean).join(" · ");
  return line;
}

async function log(vm) {
  say(vm.message);
  $("console-entries").replaceChildren(...(vm.software || []).map(entry));
  const reply = await ask("GET", `vmachines/agent_log?uuid=${vm.uuid}`).catch((err) => ({ lines: [err.message] }));
  if (!logging || shown.uuid !== vm.uuid) return;
  const tail = $("console-tail");
  const atEnd = tail.scrollTop + tail.clientHeight >= tail.scrollHeight - 4;
  tail.textContent = reply.lines.join("\n");
  if (atEnd) tail.scrollTop = tail.scrollHeight;
  $("console-show").hidden = !reply.may_see_screen || vm.status !== "installing";
}

function arrange() {
  const installing = shown.status === "installing";
  view.hidden = logging;
  $("console-keys").hidden = logging;
  $("console-only").parentElement.hidden = logging;
  $("console-log").hidden = !logging;
  $("console-show").hidden = logging || !installing; // while the log is shown, `log` knows
  $("console-show").textContent = logging ? "Show the console" : "Show the log";
}

function open(vm, asLog = vm.status === "installing") {
  shown = vm;
  logging = asLog;
  $("console-name").textContent = vm.name;
  arrange();
  if (logging) { disconnect(); log(vm); } else connect(vm);
  if (!$("console").open) $("console").showModal();
}

document.addEventListener("console", (event) => open(event.detail));
document.addEventListener("vms", (event) => {
  if (!$("console").open || !shown) return;
  const now = event.detail.find((vm) => vm.uuid === shown.uuid);
  if (!now) return;
  const before = shown.status;
  shown = now;
  if (now.status === "installing") {
    // A restart of the VM: its screen gives way to the log.
    if (before !== "installing") open(now);
    else if (logging) log(now);
  } else if (!logging) arrange();
  else if (now.status === "failed to start") log(now);
  else open(now); // the log gives way to the screen
});
$("console-only").addEventListener("change", () => connect(shown));
$("console-keys").addEventListener("click", () => rfb && rfb.sendCtrlAltDel());
$("console-show").addEventListener("click", () => open(shown, !logging));
$("console-shut").addEventListener("click", () => $("console").close());
$("console").addEventListener("close", () => { disconnect(); shown = null; logging = false; });
// Escape is the guest's: the button closes.
$("console").addEventListener("cancel", (event) => event.preventDefault());
