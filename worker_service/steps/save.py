"""The steps that save disks, or move them to failed_to_save."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial

import msgspec

from worker_service.contract import TRIES, HaltCause
from worker_service.core.errors import HypervisorError, SalternError
from worker_service.core.failpoints import failpoint
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import kept_message
from worker_service.state.record import NOT_FLAT, Disk, Phase, Record, with_save
from worker_service.steps import disk_guard, manifest
from worker_service.steps.progress import reporter
from worker_service.steps.retry import begin_try
from worker_service.transfer.registry import target
from worker_service.transfer.uri import parse

log = logging.getLogger("saltern.steps")


def save(worker: WorkerContext, record: Record) -> None:
    """Run one try to save the disks. Each one is staged and verified before any is committed.

    Disks that stay on the worker are kept then, without their flattened files.
    """
    record = begin_try(worker, record)
    folder, policy = worker.store.folder(record.uuid), worker.policy_of(record.owner)
    tokens: dict[str, str] = {}
    unsaved = record.unsaved_disks
    for disk_name in unsaved:
        uri = record.targets[disk_name].uri
        tokens[disk_name] = target(uri, policy).stage(
            uri,
            folder / record.disks[disk_name].flat_name(disk_name),
            record.disks[disk_name].flat_sha256 or "",
            f"{record.uuid}-{disk_name}",
            reporter(worker, record, f"save {disk_name}"),
        )
        failpoint("save.staged")
    worker.require_current(record)  # until here a destroy leaves nothing at the target
    for disk_name in unsaved:
        uri, disk = record.targets[disk_name].uri, record.disks[disk_name]
        saved_to = target(uri, policy).commit(
            uri,
            tokens[disk_name],
            disk.flat_sha256 or "",
            disk.target_version,
            f"{record.uuid}-{disk_name}",
            reporter(worker, record, f"save {disk_name}"),
        )
        failpoint("save.committed")
        record = worker.note(record, partial(with_save, disk=disk_name, saved_to=saved_to))
    message = _write_manifests(worker, record)
    failpoint("save.noted")
    if not record.disks_stay:
        worker.advance(record, Phase.CLEANING, unsaved=False, message=message)
        return
    disks = _as_kept(worker, record)
    for disk_name, disk in record.disks.items():
        if disk.flat_sha256:
            (folder / disk.flat_name(disk_name)).unlink(missing_ok=True)
    folder = worker.store.folders.restore_from_failed(record.uuid)
    drop_memory(worker, record)
    failpoint("save.kept")
    kept = kept_message(
        msgspec.structs.replace(record, disks=disks), record.halt_cause or HaltCause.OPERATOR, str(folder)
    )
    message = " ".join(filter(None, (kept, conflict_message(record), message)))
    worker.advance(record, Phase.KEPT, unsaved=False, message=message, disks=disks)


def drop_memory(worker: WorkerContext, record: Record) -> None:
    """Drop the memory that libvirt has saved of a VM which was shut down: its next start boots its disks."""
    with suppress(HypervisorError):  # disks are saved without libvirt too
        if worker.domain(record).saved_memory:
            worker.hypervisor(record.spec.hypervisor).forget(record.uuid)


def _as_kept(worker: WorkerContext, record: Record) -> dict[str, Disk]:
    """Return the disks as they are kept: to be flattened again at the next halt, and then to replace what is there.

    Raises SalternError unless this is the last try. Then the next save gets a conflict name.
    """
    disks = {name: msgspec.structs.replace(disk, **NOT_FLAT) for name, disk in record.disks.items()}
    for disk_name in record.disks_to_save:
        try:
            policy, claim = worker.policy_of(record.owner), manifest.claim_of(record, disk_name, record.owner)
            version = manifest.version_to_replace(record.targets[disk_name].uri, policy, claim)
        except SalternError as err:
            if record.tries < TRIES:
                raise
            log.warning("%s: the target of %s could not be looked at: %s", record.name, disk_name, err)
            version = None
        disks[disk_name] = msgspec.structs.replace(disks[disk_name], target_version=version)
    return disks


def conflict_message(record: Record) -> str:
    """Return why saved disks are not at their targets, or ""."""
    saved_elsewhere = [
        saved_to
        for disk_name in record.disks_to_save
        if (saved_to := record.disks[disk_name].saved_to) and saved_to != record.save_to(disk_name)
    ]
    if any("conflict" in uri for uri in saved_elsewhere):
        return "Another file lay at the target, or it had changed meanwhile. It was left as it is."
    return ""


def _write_manifests(worker: WorkerContext, record: Record) -> str:
    """Write the manifests of all saved disks; return what could not be written.

    Raises SalternError unless this is the last try. Then the disks lie whole at their targets, and the save has not
    failed because of a manifest.
    """
    policy, problems = worker.policy_of(record.owner), []
    for disk_name in record.disks_to_save:
        saved_to, digest = record.disks[disk_name].saved_to or "", record.disks[disk_name].flat_sha256
        if digest is None:  # saved at an earlier halt
            continue
        writer = target(record.targets[disk_name].uri, policy)
        try:
            version = manifest.lasting(parse(saved_to), writer.observe(parse(saved_to)))
            data = manifest.encode(record, disk_name, saved_to, version)
            manifest.write(writer, saved_to, data, f"{record.uuid}-{disk_name}", digest)
        except SalternError as err:
            if record.tries < TRIES:
                raise
            log.warning("%s: no manifest of %s: %s", record.name, saved_to, err)
            problems.append(f"The manifest of {saved_to} could not be written: {err}")
    return " ".join(problems)


def move_to_failed(worker: WorkerContext, record: Record) -> None:
    """Move the folder to failed_to_save after the last try. It stays in place if it cannot be moved."""
    for disk_name in record.unsaved_disks:
        with suppress(SalternError):  # the target may be the cause of the failure
            discard(worker, record, disk_name)
    disk_guard.require_idle(worker, record)
    reason = record.problem or "the reason is in helper.log"
    where = ""
    try:
        folder = worker.store.folders.move_to_failed(record, worker.now())
    except OSError as err:
        log.exception("%s could not be moved to failed_to_save", record.name)
        folder = worker.store.folder(record.uuid)
        where = f", in place: they could not be moved to {worker.store.failed} ({err.strerror})"
    failpoint("failed.moved")
    for disk_name in record.unsaved_disks:
        with suppress(OSError):  # the record has the same facts, and must be written even if the disk is full
            path = folder / f"{disk_name}.manifest.json"
            worker.store.reserve.write(path, manifest.encode(record, disk_name, ""))
    worker.advance(
        record,
        Phase.SAVE_FAILED,
        unsaved=True,
        message=f"Saving failed {TRIES} times: {reason} Its disks are safe in {folder}{where}. "
        "Remove the cause, then call save_retry (modify can name another place).",
    )


def discard(worker: WorkerContext, record: Record, disk_name: str) -> None:
    """Remove the parts of unfinished tries at the target of a disk."""
    uri = record.targets[disk_name].uri
    source = worker.store.folder(record.uuid) / record.disks.get(disk_name, Disk()).flat_name(disk_name)
    target(uri, worker.policy_of(record.owner)).discard(uri, source, f"{record.uuid}-{disk_name}")
