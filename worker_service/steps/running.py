"""The steps of a VM that is on: press the power button, change the CD."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta

import msgspec

from worker_service.contract import IGNORES_BUTTON
from worker_service.core import host
from worker_service.core.errors import SalternError
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step
from worker_service.state.outside_changes import started_outside, was_started
from worker_service.state.record import BEING_CHANGED, RETRY_RESET, Record
from worker_service.steps import manifest
from worker_service.steps.progress import reporter
from worker_service.transfer.uri import parse


def note_start(worker: WorkerContext, record: Record) -> None:
    """Note that a VM runs which was off: somebody has started its domain. It will be saved again when it halts."""
    domain = worker.domain(record)
    if not was_started(record, domain):
        return  # it went off again; the next pass decides
    versions: dict[str, str | None] = {}
    for disk_name, disk in record.disks.items():
        if disk.saved_to and disk_name in record.targets:  # what this life has saved already may be replaced by it
            claim = manifest.claim_of(record, disk_name, record.owner)
            with suppress(SalternError):
                uri = record.targets[disk_name].uri
                versions[disk_name] = manifest.version_to_replace(uri, worker.policy_of(record.owner), claim)
    folder = worker.store.folder(record.uuid)
    worker.note(record, lambda current: started_outside(current, domain, worker.now(), host.boot_id(), versions))
    for disk_name, disk in record.disks.items():
        if disk.flat_sha256:
            (folder / disk.flat_name(disk_name)).unlink(missing_ok=True)


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
