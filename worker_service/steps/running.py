"""The steps of a VM that is on: press the power button, change the CD."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from worker_service.contract import IGNORES_BUTTON
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step
from worker_service.state.record import BEING_CHANGED, RETRY_RESET, Record
from worker_service.steps.progress import reporter
from worker_service.transfer.uri import parse


def ask_shutdown(worker: WorkerContext, record: Record) -> None:
    """Press the power button, and again later: a guest that still boots may ignore it."""
    worker.hypervisor(record.spec.hypervisor).shutdown(record.uuid)
    tries = record.tries + 1
    problem = f"The power button was pressed {tries} times, and it still runs: {IGNORES_BUTTON}."
    worker.note(
        record,
        lambda current: msgspec.structs.replace(
            current,
            tries=tries,
            next_try_at=worker.now() + timedelta(seconds=worker.settings.retry_delay_s),
            next_try_of=Step.ASK_SHUTDOWN,
            problem=problem if tries > 1 else None,
        ),
    )


def change_cd(worker: WorkerContext, record: Record) -> None:
    """Fetch the CD of the spec and insert it into the running guest, or eject the present one."""
    uri, digest = record.spec.cd_image or "", None
    if uri:
        digest = worker.cache_of(record.owner).fetch(parse(uri), "cd", reporter(worker, record, "fetch cd")).digest
    # Noted first: a request for the former CD, meanwhile or after a crash, is then a change too.
    record = worker.note(record, lambda current: msgspec.structs.replace(current, cd_uri=BEING_CHANGED))
    worker.hypervisor(record.spec.hypervisor).change_cd(record.uuid, worker.cache.lend(digest) if digest else None)
    worker.note(record, lambda current: msgspec.structs.replace(current, cd=digest, cd_uri=uri, **RETRY_RESET))
