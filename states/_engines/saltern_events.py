"""Salt engine of the Salt master: hands the events of workers to the gate of Saltern's master service.

It reads the event bus inside the Salt master, because the stream of salt-api cannot be trusted: any minion can forge
events in it (a newline in a tag), and end it (bytes in an event).

.. code-block:: yaml

    engines:
      - saltern_events: {path: /run/saltern-gate/events.sock}
"""

import json
import logging
import re
import socket
import time

log = logging.getLogger(__name__)

_OURS = re.compile(r"vmachines/[^/\s]{1,255}/[0-9a-z_/-]{1,60}")
_RETURN = re.compile(r"salt/job/[0-9]{1,32}(?:_[0-9]{1,10})?/ret/[^/\s]{1,255}")
_AGAIN_S = 0.5


def start(path="/run/saltern-gate/events.sock", limit_mib=16):
    """Write events as lines of JSON to the gate's socket. Connect again after a break."""
    import salt.utils.event  # noqa: PLC0415 - importing salt changes how Python imports

    with salt.utils.event.get_event("master", opts=__opts__, listen=True) as bus:
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as gate:
                    gate.connect(path)
                    log.info("connected to the gate at %s", path)
                    _pass_on(bus, gate, limit_mib << 20)
            except OSError as err:
                log.debug("the gate at %s does not listen: %s", path, err)
            while _next(bus, no_block=True) is not None:
                pass  # masters poll after a break
            time.sleep(_AGAIN_S)


def _pass_on(bus, gate, limit):
    while True:
        event = _next(bus, wait=5)
        if line := b"" if event is None else line_of(event, limit):
            gate.sendall(line + b"\n")
        elif event is None:
            gate.sendall(b"\n")  # shows in time that the gate has gone


def _next(bus, **how):
    """Return the next event, None if there is none, or {} for one that cannot be read."""
    try:
        return bus.get_event(full=True, auto_reconnect=True, **how)
    except (ValueError, TypeError, KeyError, AttributeError) as err:  # a minion can put anything on the bus
        log.warning("an event cannot be read: %s", err)
        return {}


def line_of(event, limit):
    """Return an event as a line of JSON, or nothing if the gate would not pass it on."""
    tag, data = event.get("tag"), event.get("data")
    if not isinstance(tag, str) or not isinstance(data, dict):
        return b""
    if _OURS.fullmatch(tag):
        kept = {key: data.get(key) for key in ("id", "data")}
    elif _RETURN.fullmatch(tag) and str(data.get("fun")).startswith("vmachines."):
        kept = {key: data.get(key) for key in ("id", "fun", "return", "metadata")}
    else:
        return b""
    try:
        line = json.dumps({"tag": tag, "data": kept}).encode()
    except (TypeError, ValueError, RecursionError) as err:
        log.warning("the event %.200r is not plain data: %s", tag, err)
    else:
        if len(line) <= limit:
            return line
        log.warning("the event %.200r has %d bytes, %d are read", tag, len(line), limit)
    # Without its content it has no signature: the master counts it as a message that is not believed.
    return json.dumps({"tag": tag, "data": {"id": str(data.get("id"))[:255], "data": {}}}).encode()
