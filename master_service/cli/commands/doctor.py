"""`saltern doctor` checks an installation over HTTP: one finding for each part, and a fix for each fault.

Each check is a function of the master's answer, so that a table of answers can test each fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import typer

from master_service import __version__
from master_service.cli.common import output, terminal
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import VMS, Output, client_of, with_query
from master_service.cli.common.output import Format

Answer = Mapping[str, Any]
_LOW_DISK: Final = 5 * 2**30
"""Bytes. A worker with less will soon be unable to fetch and save."""
_SKEW_S: Final = 30.0
_STALE_S: Final = 900.0
"""The age of a worker's last answer that counts as a fault: three times the default interval of polls."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """The state of one part; with a fix if it does not work."""

    part: str
    ok: bool
    message: str
    fix: str = ""

    def plain(self) -> dict[str, Any]:
        """Return the same as plain data."""
        return asdict(self)


def _good(part: str, message: str) -> Finding:
    return Finding(part=part, ok=True, message=message)


def _bad(part: str, message: str, fix: str) -> Finding:
    return Finding(part=part, ok=False, message=message, fix=fix)


def doctor(context: typer.Context, form: Output = Format.TABLE) -> None:
    """Check each part of the installation, and suggest a fix for each fault. Exits with 1 after a fault."""
    findings = examine(client_of(context), __version__)
    if form in (Format.TABLE, Format.WIDE):
        for finding in findings:
            terminal.say(f"{'ok   ' if finding.ok else 'FAULT'} {finding.part}: {finding.message}")
            if not finding.ok:
                terminal.say(f"      fix: {finding.fix}")
    else:
        output.listing([finding.plain() for finding in findings], form, (), key="part")
    faults = sum(not finding.ok for finding in findings)
    if faults:
        raise Failure(f"{faults} fault{'s' if faults > 1 else ''} found.")


def examine(client: Client, own_version: str) -> list[Finding]:
    """Return all findings, in the order of dependence. Stop early if the master does not answer."""
    try:
        version = client.outside("/version")
    except Failure as failure:
        return [_bad("master", str(failure), "start the master, or give --url http://HOST:PORT (SALTERN_URL)")]
    found = [of_version(version, own_version)]
    try:
        client.get(with_query(VMS, limit=1))
    except Failure as failure:
        fix = "give --token-file FILE or set SALTERN_TOKEN_FILE; the administrator's token is in `admin_token_file`"
        found.append(_bad("token", str(failure), fix))
    else:
        found.append(_good("token", "is accepted"))
    found += of_readiness(client.outside("/readyz"))
    if found[1].ok:
        found += _checked(lambda: list(of_workers(client.get("/workers"))), "workers")
        found += _checked(lambda: list(of_vms(client.pages(with_query(VMS, status="failed")))), "VMs")
    return found


def _checked(check: Callable[[], Sequence[Finding]], part: str) -> Sequence[Finding]:
    try:
        return check()
    except Failure as failure:
        if failure.exit_code is Exit.DENIED:
            return [_good(part, "not checked: this token may not read them")]
        return [_bad(part, str(failure), "read the master's log")]


def of_version(version: Answer, own_version: str) -> Finding:
    """Check that the master has the version of this command line."""
    if version.get("version") == own_version:
        return _good("master", f"answers, version {own_version}")
    return _bad(
        "master",
        f"is version {version.get('version')}; this command line is {own_version}",
        "install the same version of both; until then some options may be unknown to one of them",
    )


_READINESS: Final = {
    "database": "check `database_url`, that its server runs and that its disk is not full; "
    "`python -m master_service show-config` shows it",
    "salt_api": "check that salt-master and salt-api run, `salt_api_url`, and that `salt_api_password_file` holds the "
    "secret that the Salt master knows",
    "event_stream": "it opens by itself once salt-api accepts the account; if it does, read the master's log",
    "workers": "accept the worker's key (salt-key -a MINION), check that its salt-minion runs, that "
    "`salt MINION vmachines.version` answers, and enroll it (saltern workers enroll MINION)",
}


def of_readiness(ready: Answer) -> list[Finding]:
    """Return the findings of the master's own checks, from /readyz."""
    checks: Mapping[str, Answer] = ready.get("checks", {})
    return [
        _good(name.replace("_", " "), check["message"])
        if check["ok"]
        else _bad(name.replace("_", " "), check["message"], _READINESS.get(name, "read the master's log"))
        for name, check in checks.items()
    ]


def of_workers(workers: Sequence[Answer]) -> Iterator[Finding]:
    """Check that each worker is reachable and recent, and check its version, drivers, clock and disk."""
    versions = {worker["version"] for worker in workers if worker["reachable"]}
    for worker in workers:
        waits = "waits to be enrolled", f"compare its key, then: saltern workers enroll {worker['id']}"
        faults = list(_worker_faults(worker, versions)) if worker["enrolled"] else [waits]
        if faults:
            yield from (_bad(f"worker {worker['id']}", message, fix) for message, fix in faults)
        else:
            has = worker["capacity"]
            drivers = ", ".join(has["hypervisors"])
            message = f"{drivers}; version {worker['version']}; {has['disk_free'] / 2**30:.1f} GiB free on its disk"
            yield _good(f"worker {worker['id']}", message)


def _worker_faults(worker: Answer, versions: set[str]) -> Iterator[tuple[str, str]]:
    name = worker["id"]
    if not worker["reachable"]:
        reason = f" ({worker['problem']})" if worker["problem"] else ""
        fix = f"on it: systemctl status salt-minion; here: salt {name} vmachines.version, salt-key -L"
        yield f"unreachable since {worker['unreachable_since']}{reason}", fix
        return
    if worker["age_s"] is not None and worker["age_s"] > _STALE_S:
        yield (
            f"last answered {worker['age_s']:.0f} s ago",
            "no poll succeeds: check salt-api, and read the master's log",
        )
    if len(versions) > 1:
        yield (
            f"is version {worker['version']}; there are {', '.join(sorted(versions))}",
            f"bring all workers to one version: salt {name} state.apply worker",
        )
    has = worker["capacity"]
    if has is None:
        yield "has not reported its capacity yet", f"salt {name} vmachines.list, and read its answer"
        return
    if not has["hypervisors"]:
        yield "has no hypervisor driver that works", "on it: systemctl status libvirtd; virsh -c qemu:///system list"
    if has["disk_free"] < _LOW_DISK:
        yield (
            f"{has['disk_free'] / 2**30:.1f} GiB are free on its disk",
            f"salt {name} vmachines.cache_clean, or give its data root a larger disk",
        )
    if has.get("guests_isolated") is False:
        yield (
            "its guests on the network `user` reach it and its private networks",
            "on it: systemctl restart saltern-guest-firewall, and read why that fails",
        )
    skew_s = worker.get("clock_skew_s")
    if skew_s is not None and abs(skew_s) > _SKEW_S:
        yield f"its clock is {skew_s:+.0f} s off", "on it: timedatectl set-ntp true"
    for vm in worker["unassigned_vms"]:
        yield (
            f"runs {vm['name']} ({vm['uuid']}), which is ours but not assigned to it",
            f"check it, then: salt {name} vmachines.shutdown uuid={vm['uuid']}",
        )


def of_vms(failed: Sequence[Answer]) -> Iterator[Finding]:
    """Check for VMs that need a user: disks that could not be saved, starts that failed.

    A VM that was destroyed on its worker is no fault: there is nothing left to mend.
    """
    by_codes = [(vm, {problem["code"]: problem.get("message", "") for problem in vm["problems"]}) for vm in failed]
    if all("gone" in codes for _, codes in by_codes):
        yield _good("VMs", "none has failed")
    for vm, codes in by_codes:
        message = vm["message"] or vm["reason"]
        if "gone" in codes:
            yield _good(f"VM {vm['name']}", f"{message} (saltern destroy {vm['name']}), or start it from its images")
            continue
        if held := codes.get("migrated") or codes.get("elsewhere"):
            message, fix = held, "do there what is said; it goes on by itself once it is back"
        elif "failed_to_save" in codes:
            fix = (
                f"fix the cause, or choose another target (saltern modify {vm['name']} --hda-save-to URI), then "
                f"saltern save-retry {vm['name']}; its disks are safe on {vm['worker']}"
            )
        else:
            fix = f"fix the cause, then saltern start {vm['name']}; saltern history {vm['name']} shows how it happened"
        yield _bad(f"VM {vm['name']}", message, fix)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(doctor)
