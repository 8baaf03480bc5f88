"""Health checks of the parts: functions that return `""` or the problem."""

from __future__ import annotations

import secrets
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from devstack import http
from devstack.layout import PYTHON, REPO, Layout

Health = Callable[[float], str]
"""Returns `""` if the part works, otherwise the problem in a few words; never raises. The argument is the timeout."""

PATIENT_S: Final = 5.0
"""Timeout for a busy machine. A start uses shorter ones first, because Salt loses jobs for absent minions."""

_VERSION: Final = "vmachines.version"
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


def gate(layout: Layout) -> Health:
    """Check that the gate can log in at salt-api. The Salt master's port opens before it can answer this."""

    def check(patience_s: float) -> str:
        try:
            reply = http.call_unix(layout.gate_socket, "GET", "/check", timeout_s=patience_s)
        except OSError as err:
            return f"gate: {err}"
        return "" if reply.ok else f"gate: {_message(reply)}"

    return check


def minion(layout: Layout) -> Health:
    """Check that the minion answers through the gate, as it does for the master service."""

    def check(patience_s: float) -> str:
        wait_s = max(1, round(patience_s))
        call = {"workers": [layout.minion], "fun": _VERSION, "kwarg": {}, "nonce": secrets.token_hex(16)}
        try:
            reply = http.call_unix(
                layout.gate_socket, "POST", "/call", body={**call, "timeout_s": wait_s}, timeout_s=4 * wait_s
            )
        except OSError as err:
            return f"gate: {err}"
        if not reply.ok:
            return f"gate: {_message(reply)}"
        # The type shows success: an unknown function and a silent minion give a string, an absent minion no entry.
        returned = reply.body["return"][0].get(layout.minion, "no answer")
        if isinstance(returned, dict):
            return "" if returned.get("success") else f"{_VERSION}: {returned.get('message')}"
        return f"{_VERSION}: {returned}".splitlines()[0]

    return check


def enrolled(layout: Layout, name: str, read_fingerprint: Callable[[], str], api_url: str) -> Health:
    """Enroll a worker of this stack at its master, unless it is. The stack made both: there is nothing to compare."""

    def check(patience_s: float) -> str:
        path = f"{layout.master_url}/api/v1/workers/{name}"
        headers = http.bearer(layout.admin_token)
        try:
            own = read_fingerprint()
            known = http.call("GET", path, headers=headers, timeout_s=patience_s)
            if known.ok and known.body["enrolled"] and known.body["fingerprint"] == own:
                return ""
            body = {"fingerprint": own, "api_url": api_url}
            reply = http.call("POST", f"{path}/enroll", body=body, headers=headers, timeout_s=patience_s)
        except (OSError, subprocess.SubprocessError) as err:
            return f"enrollment: {err}"
        return "" if reply.ok else f"enrollment: {_message(reply)}"

    return check


def fingerprint(layout: Layout) -> str:
    """Return the key of this stack's worker. Raises OSError and SubprocessError."""
    command = [str(PYTHON), "-m", "worker_service", "fingerprint", "--settings", str(layout.worker_toml)]
    answer = subprocess.run(command, cwd=REPO, check=True, capture_output=True, text=True, timeout=60)
    return answer.stdout.strip()


def _message(reply: http.Reply) -> str:
    return str(reply.body.get("message", reply.body) if isinstance(reply.body, dict) else reply.body)[:200]
