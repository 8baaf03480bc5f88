"""The steps that bring disks to their targets, or to failed_to_save."""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec

from worker_service.contract import TRIES
from worker_service.core.errors import SalternError
from worker_service.core.failpoints import checkpoint
from worker_service.state.context import Worker
from worker_service.state.record import Disk, Phase, Record
from worker_service.steps.progress import disk_change, reporter
from worker_service.steps.retry import begin_try
from worker_service.transfer.registry import target
from worker_service.transfer.uri import parse

log = logging.getLogger("saltern.steps")


def save(worker: Worker, record: Record) -> None:
    """One try to bring all disks home: every one is staged and verified before any gets its name."""
    record = begin_try(worker, record)
    folder = worker.store.folder(record.uuid)
    tokens: dict[str, str] = {}
    unsaved = [slot for slot in record.saved_disks if record.disks[slot].saved_to is None]
    for slot in unsaved:
        uri = parse(record.save_to(slot) or "")
        tokens[slot] = target(uri, worker.settings.images).stage(
            uri,
            folder / record.disks[slot].sealed_name(slot),
            record.disks[slot].sealed_sha256 or "",
            f"{record.uuid}-{slot}",
            reporter(worker, record, f"save {slot}"),
        )
        checkpoint("save.staged")
    worker.check_wanted(record)  # the last moment at which a destroy still leaves nothing at the target
    for slot in unsaved:
        uri, disk = parse(record.save_to(slot) or ""), record.disks[slot]
        writer = target(uri, worker.settings.images)
        saved_to = writer.commit(
            uri,
            tokens[slot],
            disk.sealed_sha256 or "",
            disk.target_seen,
            f"{record.uuid}-{slot}",
            reporter(worker, record, f"save {slot}"),
        )
        checkpoint("save.committed")
        writer.note(saved_to, manifest(record, slot, saved_to))
        record = worker.note(record, disk_change(slot, saved_to=saved_to))
    checkpoint("save.noted")
    worker.advance(record, Phase.CLEANING, unsaved=False)


def set_aside(worker: Worker, record: Record) -> None:
    """Three tries failed: keep the folder where the program never deletes, and say so; else where it is."""
    for slot in record.saved_disks:
        with suppress(SalternError):  # the target is what failed
            discard(worker, record, slot)
    why = record.problem or "the reason is in helper.log"
    where = ""
    try:
        folder = worker.store.set_aside(record, worker.now())
    except OSError as err:
        log.exception("%s could not be moved to failed_to_save", record.name)
        folder = worker.store.folder(record.uuid)
        where = f", in place: they could not be moved to {worker.store.failed} ({err.strerror})"
    checkpoint("aside.moved")
    for slot in record.saved_disks:
        with suppress(OSError):  # the record says the same; a full disk must not keep it from saying so
            worker.store.reserve.write(folder / f"{slot}.manifest.json", manifest(record, slot, ""), mode=0o644)
    worker.advance(
        record,
        Phase.SAVE_FAILED,
        unsaved=True,
        message=f"Saving failed {TRIES} times: {why} Its disks are safe in {folder}{where}. "
        "Mend the cause, then call save_retry (modify can name another place).",
    )


def discard(worker: Worker, record: Record, slot: str) -> None:
    """Remove what unfinished tries left at the target of a disk."""
    uri = parse(record.save_to(slot) or "")
    source = worker.store.folder(record.uuid) / record.disks.get(slot, Disk()).sealed_name(slot)
    target(uri, worker.settings.images).discard(uri, source, f"{record.uuid}-{slot}")


def manifest(record: Record, slot: str, saved_to: str) -> bytes:
    """What is written beside a saved image. `size` in bytes."""
    disk = record.disks[slot]
    return msgspec.json.format(
        msgspec.json.encode(
            {
                "format": disk.sealed_form.format,
                "compress": disk.sealed_form.compress,
                "sha256": disk.sealed_sha256,
                "size": disk.sealed_size,
                "saved_to": saved_to,
                "source": record.image(slot),
                "base_sha256": disk.base,
                "soft_list": record.spec.soft_list,
                "software": record.software,
                "vm": {"uuid": record.uuid, "name": record.name, "generation": record.generation},
                "halt_cause": record.halt_cause,
                "halted_at": record.phase_since,
            }
        )
    )
