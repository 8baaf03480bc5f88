"""Whether each part does its work: functions that return `""`, or what is wrong with it."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from devstack import config, http
from devstack.console import Trouble
from devstack.layout import Layout

Health = Callable[[float], str]
"""Returns `""` when the part works, else a few words; never raises. The argument: how many seconds it may take."""

PATIENT_S: Final = 5.0
"""Long enough for a busy machine. Whoever waits for a start asks again sooner: Salt loses jobs for absent minions."""

VIRTLOGD_SOCKET: Final = Path("/run/libvirt/virtlogd-sock")


def tcp(port: int) -> Health:
    """Somebody listens on the port."""

    def check(patience_s: float) -> str:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=patience_s).close()
        except OSError as err:
            return f"port {port}: {err.strerror or err}"
        return ""

    return check


def unix(path: Path) -> Health:
    """Somebody listens on the socket."""

    def check(patience_s: float) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(patience_s)
            try:
                client.connect(str(path))
            except OSError as err:
                return f"{path}: {err.strerror or err}"
        return ""

    return check


def libvirt(uri: str) -> Health:
    """A client gets a connection to the hypervisor driver. On systemd this alone starts the daemon."""

    def check(patience_s: float) -> str:
        try:
            done = subprocess.run(
                ["virsh", "-q", "-c", uri, "uri"],
                check=False,
                capture_output=True,
                text=True,
                timeout=2 * patience_s,
            )
        except (OSError, subprocess.TimeoutExpired) as err:
            return str(err)
        return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]

    return check


def get(url: str) -> Health:
    """The address answers with success."""

    def check(patience_s: float) -> str:
        try:
            reply = http.call("GET", url, timeout_s=2 * patience_s)
        except OSError as err:
            return f"{url}: {err}"
        return "" if reply.ok else f"{url} says {reply.status}: {unready_reason(reply.body)}"

    return check


def unready_reason(body: Any) -> str:
    """Return the messages of the failed checks in a body of `/readyz`, or the body itself."""
    checks = body.get("checks", {}) if isinstance(body, dict) else {}
    messages = [f"{name} {check.get('message')}" for name, check in checks.items() if not check.get("ok")]
    return "; ".join(messages) or str(body)[:200]


def salt_api(layout: Layout) -> Health:
    """The master service's account can log in. This asks the Salt master, whose port opens before it answers."""

    def check(patience_s: float) -> str:
        try:
            _login(layout, patience_s)
        except (OSError, Trouble) as err:
            return f"salt-api: {err}"
        return ""

    return check


def minion(layout: Layout) -> Health:
    """The minion answers that account through salt-api: the very way that the master service goes."""

    def check(patience_s: float) -> str:
        try:
            return _call_minion(layout, "vmachines.version", patience_s)
        except (OSError, Trouble) as err:
            return f"salt-api: {err}"

    return check


def _login(layout: Layout, timeout_s: float) -> str:
    """A token of salt-api. Raises OSError and Trouble."""
    reply = http.call("POST", f"{layout.cherrypy_url}/login", body=config.salt_login(layout), timeout_s=timeout_s)
    if not reply.ok:
        raise Trouble(f"it says {reply.status} to the login")
    token: str = reply.body["return"][0]["token"]
    return token


def _call_minion(layout: Layout, function: str, patience_s: float) -> str:
    """Run one function on the minion; `""` if it says success. Raises OSError and Trouble."""
    token = _login(layout, patience_s)
    wait_s = max(1, round(patience_s))
    reply = http.call(
        "POST",
        f"{layout.cherrypy_url}/",
        headers={"X-Auth-Token": token},
        body=[
            {"client": "local", "tgt": layout.minion, "fun": function, "timeout": wait_s, "gather_job_timeout": wait_s}
        ],
        timeout_s=4 * wait_s,
    )
    if not reply.ok:
        return f"salt-api says {reply.status} to {function}"
    # Success is told by the shape: an unknown function and a silent minion are sentences, an absent minion is missing.
    returned = reply.body["return"][0].get(layout.minion, "no answer")
    if isinstance(returned, dict):
        return "" if returned.get("success") else f"{function}: {returned.get('message')}"
    return f"{function}: {returned}".splitlines()[0]
