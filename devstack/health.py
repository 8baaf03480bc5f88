"""Health checks of the parts: functions that return `""` or the problem."""

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
"""Returns `""` if the part works, otherwise the problem in a few words; never raises. The argument is the timeout."""

PATIENT_S: Final = 5.0
"""Timeout for a busy machine. A start uses shorter ones first, because Salt loses jobs for absent minions."""

VIRTLOGD_SOCKET: Final = Path("/run/libvirt/virtlogd-sock")


def tcp(port: int) -> Health:
    """Check that a program listens on the port."""

    def check(patience_s: float) -> str:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=patience_s).close()
        except OSError as err:
            return f"port {port}: {err.strerror or err}"
        return ""

    return check


def unix(path: Path) -> Health:
    """Check that a program listens on the socket."""

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
    """Check that libvirt accepts a connection. With systemd this also starts the daemon."""

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
    """Check that a GET of the address succeeds."""

    def check(patience_s: float) -> str:
        try:
            reply = http.call("GET", url, timeout_s=2 * patience_s)
        except OSError as err:
            return f"{url}: {err}"
        return "" if reply.ok else f"{url} answers {reply.status}: {unready_reason(reply.body)}"

    return check


def unready_reason(body: Any) -> str:
    """Return the messages of the failed checks in a body of `/readyz`, or the body itself."""
    checks = body.get("checks", {}) if isinstance(body, dict) else {}
    messages = [f"{name} {check.get('message')}" for name, check in checks.items() if not check.get("ok")]
    return "; ".join(messages) or str(body)[:200]


def salt_api(layout: Layout) -> Health:
    """Check that the master service's account can log in. The Salt master's port opens before it can answer this."""

    def check(patience_s: float) -> str:
        try:
            _login(layout, patience_s)
        except (OSError, Trouble) as err:
            return f"salt-api: {err}"
        return ""

    return check


def minion(layout: Layout) -> Health:
    """Check that the minion answers through salt-api, as it does for the master service."""

    def check(patience_s: float) -> str:
        try:
            return _call_minion(layout, "vmachines.version", patience_s)
        except (OSError, Trouble) as err:
            return f"salt-api: {err}"

    return check


def _login(layout: Layout, timeout_s: float) -> str:
    """Return a token of salt-api. Raises OSError and Trouble."""
    reply = http.call("POST", f"{layout.cherrypy_url}/login", body=config.salt_login(layout), timeout_s=timeout_s)
    if not reply.ok:
        raise Trouble(f"it answers {reply.status} to the login")
    token: str = reply.body["return"][0]["token"]
    return token


def _call_minion(layout: Layout, function: str, patience_s: float) -> str:
    """Run one function on the minion; return `""` if it succeeds. Raises OSError and Trouble."""
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
        return f"salt-api answers {reply.status} to {function}"
    # The type shows success: an unknown function and a silent minion give a string, an absent minion gives no entry.
    returned = reply.body["return"][0].get(layout.minion, "no answer")
    if isinstance(returned, dict):
        return "" if returned.get("success") else f"{function}: {returned.get('message')}"
    return f"{function}: {returned}".splitlines()[0]
