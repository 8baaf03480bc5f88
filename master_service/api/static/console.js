// One VM's console by a ticket in the fragment, which is good once: it is taken out of the address at once.
// Every address is relative to this page: a proxy may have the master below a path of its own.
const $ = (id) => document.getElementById(id);
const say = (text) => { $("state").textContent = text; };
const RENEW = "`saltern console-url NAME` gives a new address.";
const ticket = location.hash.slice(1);
const uuid = location.pathname.split("/").pop();
history.replaceState(null, "", location.pathname);

async function open() {
  if (!ticket) { say(`The address has no ticket. ${RENEW}`); return; }
  const { default: RFB } = await import("../novnc/core/rfb.js");
  const place = new URL(`../api/v1/console/${uuid}/screen`, location.href.replace("http", "ws"));
  // noVNC does not tell why the other end closed; a websocket of one's own does.
  const socket = new WebSocket(place, ["binary", `ticket.${ticket}`]);
  let reason = "There is no console: the ticket was used or has expired, or the VM is off.";
  socket.addEventListener("close", (event) => { reason = event.reason || reason; });
  const rfb = new RFB($("view"), socket, { shared: true });
  rfb.scaleViewport = true;
  rfb.background = "#000";
  rfb.addEventListener("connect", () => {
    reason = "The connection broke.";
    say("Connected.");
    $("keys").hidden = false;
    rfb.focus();
  });
  rfb.addEventListener("desktopname", (event) => {
    $("name").textContent = event.detail.name;
    document.title = `${event.detail.name} - Saltern`;
  });
  rfb.addEventListener("disconnect", () => {
    $("keys").hidden = true;
    say(`${reason} ${RENEW}`);
  });
  $("keys").addEventListener("click", () => rfb.sendCtrlAltDel());
}

open().catch(() => say("noVNC is not installed here. In a clone, `make setup` fetches it."));
