"""Judge whether a guest is ready, from its `soft_list`, the report of its agent, and the time."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from worker_service.contract import Software
from worker_service.guest_agent.report import Report


class State(StrEnum):
    """The readiness of a guest that has to report."""

    AWAITED = "awaited"
    READY = "ready"
    FAILED = "failed"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The state, the entries of `soft_list`, and a sentence for users."""

    state: State = State.AWAITED
    software: tuple[Software, ...] = ()
    message: str = "It boots; the agent in it has not reported yet."


AWAITED = Readiness()
"""The guest has not reported yet."""


def judge(report: Report, *, guest_agent: bool, since: datetime, limit_s: float, now: datetime) -> Readiness:
    """Return the readiness of a guest.

    Args:
        report: the agent's report. If it has no software, the guest only has to be up.
        guest_agent: whether the image's own qemu-guest-agent answers, which counts as `up`.
        since: the time of the last progress, or of the guest's start.
        limit_s: longest time without progress.
        now: the time.
    """
    if entry := report.failed:
        return _failed(report, f"{entry.name} could not be installed: {entry.tail or 'the agent gave no reason'}")
    if report.failure:
        return _failed(report, f"The agent cannot install anything: {report.failure}")
    ready = report.done and report.installed == len(report.software) if report.software else report.up or guest_agent
    if ready:
        return Readiness(state=State.READY, software=report.software, message="")
    if (now - since).total_seconds() > limit_s:
        return _failed(report, _overdue(report, limit_s, guest_agent=guest_agent))
    return Readiness(software=report.software, message=_activity(report, guest_agent=guest_agent))


def _failed(report: Report, reason: str) -> Readiness:
    return Readiness(state=State.FAILED, software=report.software, message=reason)


def _activity(report: Report, *, guest_agent: bool) -> str:
    if not report.up:
        return "It is up; Saltern's agent in it has not reported yet." if guest_agent else AWAITED.message
    total = len(report.software)
    if entry := report.current:
        return f"Installing {min(report.installed + 1, total)} of {total}: {entry.name}."
    if report.installed == total:
        return f"{total} of {total} installed; finishing."
    return f"{report.installed} of {total} installed; preparing the next."


def _overdue(report: Report, limit_s: float, *, guest_agent: bool) -> str:
    if report.up:
        return (
            f"The agent made no progress for {limit_s:g} s; its last report: {_activity(report, guest_agent=False)} "
            "Look at console.log, and whether the guest reaches its package mirror."
        )
    if guest_agent and report.software:
        return (
            f"Saltern's agent has not reported within {limit_s:g} s: qemu-guest-agent answers, so the guest is up, "
            "but its image has neither cloud-init nor Saltern's agent, which install soft_list. Use an image that has "
            "one of them, or leave out soft_list."
        )
    return (
        f"No agent in the guest has reported within {limit_s:g} s: its image has neither cloud-init nor "
        "Saltern's agent nor qemu-guest-agent, or it did not boot (console.log shows that). Use an image that has one "
        "of them, or leave out soft_list and run_agent."
    )
