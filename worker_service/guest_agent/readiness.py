"""Whether a guest is ready: a function of what was asked for, what its agent reported, and the time."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

import msgspec

from worker_service.contract import Software
from worker_service.guest_agent.report import Report


class State(StrEnum):
    """What is known of the readiness of a guest that has to report."""

    AWAITED = "awaited"
    READY = "ready"
    FAILED = "failed"


class Readiness(msgspec.Struct, frozen=True, kw_only=True):
    """The state, the entries of `soft_list`, and a sentence for people."""

    state: State = State.AWAITED
    software: tuple[Software, ...] = ()
    message: str = "It boots; nothing was heard of the agent in it yet."


AWAITED = Readiness()
"""Nothing was heard."""


def judge(report: Report, *, guest_agent: bool, since: datetime, limit_s: float, now: datetime) -> Readiness:
    """Whether a guest is ready.

    Args:
        report: what the agent said. Without any software in it the guest only has to be up.
        guest_agent: whether the image's own qemu-guest-agent answers: as good as `up`.
        since: when there was progress last, or the guest began to run.
        limit_s: how long it may be without progress.
        now: the time.
    """
    if entry := report.failed:
        return _failed(report, f"{entry.name} could not be installed: {entry.tail or 'the agent did not say why'}")
    if report.failure:
        return _failed(report, f"Nothing could be installed: {report.failure}")
    ready = report.done and report.installed == len(report.software) if report.software else report.up or guest_agent
    if ready:
        return Readiness(state=State.READY, software=report.software, message="")
    if (now - since).total_seconds() > limit_s:
        return _failed(report, _overdue(report, limit_s, guest_agent=guest_agent))
    return Readiness(software=report.software, message=_doing(report, guest_agent=guest_agent))


def _failed(report: Report, why: str) -> Readiness:
    return Readiness(state=State.FAILED, software=report.software, message=why)


def _doing(report: Report, *, guest_agent: bool) -> str:
    if not report.up:
        return "It is up; nothing was heard of Saltern's agent in it yet." if guest_agent else AWAITED.message
    total = len(report.software)
    if entry := report.current:
        return f"Installing {min(report.installed + 1, total)} of {total}: {entry.name}."
    if report.installed == total:
        return f"{total} of {total} installed; finishing."
    return f"{report.installed} of {total} installed; preparing the next."


def _overdue(report: Report, limit_s: float, *, guest_agent: bool) -> str:
    if report.up:
        return (
            f"The agent made no progress for {limit_s:g} s; the last it said: {_doing(report, guest_agent=False)} "
            "Look at console.log, and whether the guest reaches its package mirror."
        )
    if guest_agent and report.software:
        return (
            f"Nothing was heard of Saltern's agent within {limit_s:g} s: qemu-guest-agent answers, so the guest is up, "
            "but its image has neither cloud-init nor Saltern's agent, which install soft_list. Use an image that has "
            "one of them, or leave out soft_list."
        )
    return (
        f"Nothing was heard of an agent in the guest within {limit_s:g} s: its image has neither cloud-init nor "
        "Saltern's agent nor qemu-guest-agent, or it did not boot (console.log shows that). Use an image that has one "
        "of them, or leave out soft_list and run_agent."
    )
