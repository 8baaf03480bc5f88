"""`saltern doctor` checks an installation over HTTP: one finding for each part, and a fix for each fault.

Each check is a function of the master's answer, so that a table of answers can test each fault.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import typer

from master_service import __version__
from master_service.cli.common import output, terminal
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.findings import Answer, Finding, bad, good, of_profile, of_vms, of_workers
from master_service.cli.common.options import VMS, Output, client_of, with_query
from master_service.cli.common.output import Format


def examine(client: Client, own_version: str) -> list[Finding]:
    """Return all findings, in the order of dependence. Stop early if the master does not answer."""
    try:
        version = client.outside("/version")
    except Failure as failure:
        return [bad("master", str(failure), "start the master, or give --url http://HOST:PORT (SALTERN_URL)")]
    found = [of_version(version, own_version)]
    try:
        client.get(with_query(VMS, limit=1))
    except Failure as failure:
        fix = "give --token-file FILE or set SALTERN_TOKEN_FILE; the administrator's token is in `admin_token_file`"
        found.append(bad("token", str(failure), fix))
    else:
        found.append(good("token", "is accepted"))
    found += of_readiness(client.outside("/readyz"))
    if not found[1].ok:
        return found
    try:
        vms = list(client.pages(VMS))
    except Failure as failure:
        return [*found, _unread(failure, "VMs")]
    try:
        workers = client.get("/workers")
    except Failure as failure:
        return [*found, _unread(failure, "workers"), *of_vms(vms)]
    return [*found, *_of_salt(client), *of_workers(workers, vms), *of_vms(vms, workers_known=True)]


def _of_salt(client: Client) -> list[Finding]:
    """Return the finding about the Salt master. An older master has none, and readiness shows one that is away."""
    try:
        return [of_profile(client.get("/salt"))]
    except Failure:
        return []


def _unread(failure: Failure, part: str) -> Finding:
    if failure.exit_code is Exit.DENIED:
        return good(part, "not checked: this token may not read them")
    return bad(part, str(failure), "read the master's log")


def of_version(version: Answer, own_version: str) -> Finding:
    """Check that the master has the version of this command line."""
    if version.get("version") == own_version:
        return good("master", f"answers, version {own_version}")
    return bad(
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
        good(name.replace("_", " "), check["message"])
        if check["ok"]
        else bad(name.replace("_", " "), check["message"], _READINESS.get(name, "read the master's log"))
        for name, check in checks.items()
    ]


def doctor(context: typer.Context, form: Output = Format.TABLE) -> None:
    """Check the installation, and suggest a fix for each fault.

    Exits with 1 after a fault.
    """
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


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(doctor)
