"""The steps: thin I/O, each from one phase to the next. Each may be cut off anywhere and done again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Final

import msgspec

from worker_service.console.address import screen_socket
from worker_service.contract import TRIES, Code, Progress
from worker_service.core import host
from worker_service.core.errors import Refused, SalternError
from worker_service.core.failpoints import checkpoint
from worker_service.fs import atomic_files
from worker_service.guest_agent.readiness import State
from worker_service.hypervisor.base import DiskSource, DomainSpec, Power
from worker_service.images import flatten, qemu_img
from worker_service.images.inspection import Use
from worker_service.state.context import Worker
from worker_service.state.lifecycle import Step, after_halt, halt_cause
from worker_service.state.record import BEING_CHANGED, UNTRIED, Disk, Phase, Record, sealed_name, with_disk
from worker_service.steps import install as agent_steps
from worker_service.steps import seed_files
from worker_service.steps.retry import begin_try
from worker_service.transfer.registry import Report, target
from worker_service.transfer.uri import blank_size, parse, save_form
from worker_service.watcher.gc import drop_parts, remove_disks

log = logging.getLogger("saltern.steps")

_REPORT_EVERY_S: Final = 0.5
_PATIENCE_S: Final = 1.0
"""How long a seat is held for somebody else's fetch: it may only be asking whether the image is still the same."""


def fetch(worker: Worker, record: Record) -> None:
    """Bring every image into the cache, and look at what lies where the disks will be saved."""
    disks: dict[str, Disk] = {}
    for slot in record.wanted_disks:
        uri = record.image(slot) or ""
        disk = Disk(virtual_size=blank_size(uri) or 0)
        if not disk.virtual_size:
            use: Use = "disk" if slot == "hda" else "data"
            report = reporter(worker, record, f"fetch {slot}")
            base = worker.cache.fetch(parse(uri), use, report, patience_s=_PATIENCE_S)
            disk = Disk(base=base.digest, base_format=base.image.format, virtual_size=base.image.virtual_size)
        if save_to := record.save_to(slot):
            seen = target(parse(save_to), worker.settings.images).observe(parse(save_to))
            disk = msgspec.structs.replace(disk, target_seen=seen)
        disks[slot] = disk
    cd = None
    if record.spec.cd_image:
        report = reporter(worker, record, "fetch cd")
        cd = worker.cache.fetch(parse(record.spec.cd_image), "cd", report, patience_s=_PATIENCE_S).digest
    life = seed_files.begin_life(worker, record)
    checkpoint("fetch.done")
    worker.advance(record, Phase.BUILDING, disks=disks, cd=cd, cd_uri=record.spec.cd_image or "", life=life)


def build(worker: Worker, record: Record) -> None:
    """Make the overlays. Disks of an earlier life of this VM (it crashed, its disks were kept) stay as they are."""
    driver = worker.hypervisor(record.spec.hypervisor)
    for uuid, domain in driver.states().items():
        if domain.name == record.name and uuid != record.uuid:
            raise Refused(
                f"The hypervisor has a domain named {record.name!r} already, which is not this VM ({uuid}). "
                "Choose another name, or remove that domain.",
                code=Code.NAME_TAKEN,
            )
    if driver.state(record.uuid).power is Power.OFF:
        driver.forget(record.uuid)  # with it goes the memory of how an earlier life ended
    folder = worker.store.folder(record.uuid)
    for slot in record.wanted_disks:
        path, disk = folder / f"{slot}.qcow2", record.disks[slot]
        if path.exists():
            continue
        if record.has_own_disks:  # a new one would look like it, and have nothing of what was on it
            raise Refused(f"The disk {path}, which was kept, is gone. Put it back and start it again, or destroy it.")
        part = path.with_suffix(".part")
        part.unlink(missing_ok=True)
        if disk.base is None:
            qemu_img.create_blank(part, disk.virtual_size)
        else:
            qemu_img.create_overlay(part, worker.cache.path(disk.base), disk.base_format, disk.virtual_size)
        atomic_files.sync_file(part)
        part.replace(path)
        checkpoint("build.disk_made")
    key = seed_files.write_seed(folder, record)
    atomic_files.sync_folder(folder)
    worker.advance(record, Phase.BOOTING, minion_key=key)


def boot(worker: Worker, record: Record) -> None:
    """Define and start the domain, unless it has run already and we were cut off before we could say so."""
    driver = worker.hypervisor(record.spec.hypervisor)
    seen = driver.state(record.uuid)
    if seen.power is Power.ABSENT or (seen.power is Power.OFF and seen.cause is None):
        checkpoint("boot.before")
        driver.start(domain_spec(worker, record))
        checkpoint("boot.started")
    worker.advance(record, Phase.UP, host_boot=host.boot_id(), ended_by_host=False, halt_cause=None)


def domain_spec(worker: Worker, record: Record) -> DomainSpec:
    """What the hypervisor is to make of a record."""
    folder = worker.store.folder(record.uuid)
    return DomainSpec(
        uuid=record.uuid,
        name=record.name,
        cpu_count=record.spec.cpu_count,
        memory_mib=record.spec.mem_size,
        arch=record.spec.sys_arch,
        disks=tuple(
            DiskSource(
                slot=slot,
                path=folder / f"{slot}.qcow2",
                base=worker.cache.path(disk.base) if disk.base else None,
                base_format=disk.base_format,
            )
            for slot, disk in record.disks.items()
        ),
        cd=worker.cache.path(record.cd) if record.cd else None,
        console_log=folder / "console.log",
        agent_log=folder / seed_files.LOG,
        seed=seed_files.seed_of(folder),
        guest_agent=record.spec.wants_agent,
        network=record.spec.network,
        screen=screen_socket(folder),
    )


def ask_shutdown(worker: Worker, record: Record) -> None:
    """Press the power button, and again later: a guest that still boots does not hear it."""
    worker.hypervisor(record.spec.hypervisor).shutdown(record.uuid)
    tries = record.tries + 1
    problem = f"Asked to shut down {tries} times; the guest has not yet. If it is deaf, destroy discards it."
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


def change_cd(worker: Worker, record: Record) -> None:
    """Fetch the wanted disc and put it in the drive of the running guest, or eject."""
    uri, digest = record.spec.cd_image or "", None
    if uri:
        digest = worker.cache.fetch(parse(uri), "cd", reporter(worker, record, "fetch cd")).digest
    # Before the drive is touched: who asks for the former disc meanwhile, or after a crash, asks for a change.
    record = worker.note(record, lambda current: msgspec.structs.replace(current, cd_uri=BEING_CHANGED))
    worker.hypervisor(record.spec.hypervisor).change_cd(record.uuid, worker.cache.path(digest) if digest else None)
    worker.note(record, lambda current: msgspec.structs.replace(current, cd=digest, cd_uri=uri, **UNTRIED))


def note_halt(worker: Worker, record: Record) -> None:
    """Write down why it is off, and with that what becomes of its disks."""
    domain = worker.domain(record)
    readiness = worker.readiness(record, domain)
    cause = halt_cause(record, domain, worker.evidence(record, domain))
    ending = after_halt(record, cause, readiness)
    if ending is Phase.START_FAILED:
        agent_steps.failed_to_start(worker, record, readiness)
        return
    message = ""
    if ending is Phase.KEPT:
        folder = worker.store.folder(record.uuid)
        message = f"It is off ({cause}); its disks are kept in {folder}. Start boots it again, shutdown saves it."
    else:
        seed_files.remove_seed(worker.store.folder(record.uuid))
    # What the guest reported just before it went off counts.
    ready = agent_steps.made_ready(worker, readiness) if record.installing and readiness.state is State.READY else {}
    worker.advance(record, ending, halt_cause=cause, message=message, shutdown_asked=False, **ready)


def seal(worker: Worker, record: Record) -> None:
    """Make of each disk that is to be saved the very bytes that its target asks for, and take their digest.

    From here on they do not change: what is staged, verified and named in the manifest is this one file.
    """
    record = begin_try(worker, record)
    folder = worker.store.folder(record.uuid)
    for slot in record.saved_disks:
        form, disk = save_form(parse(record.save_to(slot) or "")), record.disks[slot]
        if disk.sealed_sha256 and disk.sealed_form == form:
            continue
        sealed, part = folder / sealed_name(slot, form), folder / f"{slot}.sealed.part"
        (folder / disk.sealed_name(slot)).unlink(missing_ok=True)  # in another form: room for the new one
        flatten.flatten(folder / f"{slot}.qcow2", part, form, reporter(worker, record, f"flatten {slot}"))
        checkpoint("seal.flattened")
        digest = flatten.sealed(part, reporter(worker, record, f"digest {slot}"))
        part.replace(sealed)
        atomic_files.sync_folder(folder)
        checkpoint("seal.renamed")
        size = sealed.stat().st_size
        record = worker.note(record, _disk_change(slot, sealed_sha256=digest, sealed_size=size, sealed_form=form))
    worker.advance(record, Phase.SAVING)


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
        record = worker.note(record, _disk_change(slot, saved_to=saved_to))
    checkpoint("save.noted")
    worker.advance(record, Phase.CLEANING, unsaved=False)


def set_aside(worker: Worker, record: Record) -> None:
    """Three tries failed: keep the folder where the program never deletes, and say so; else where it is."""
    for slot in record.saved_disks:
        with suppress(SalternError):  # the target is what failed
            _discard(worker, record, slot)
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


def clean(worker: Worker, record: Record) -> None:
    """What is saved, or was to be discarded, leaves the worker; the logs stay."""
    worker.hypervisor(record.spec.hypervisor).forget(record.uuid)
    remove_disks(worker.store.folder(record.uuid))
    worker.store.bring_back(record.uuid)
    checkpoint("clean.removed")
    saved = [disk.saved_to for disk in record.disks.values() if disk.saved_to]
    message = f"It is halted; saved to {', '.join(saved)}." if saved else "It is halted; nothing was to be saved."
    changed = [s for slot in record.saved_disks if (s := record.disks[slot].saved_to) and s != record.save_to(slot)]
    if any("conflict" in uri for uri in changed):
        message += " What lay at the wanted place had changed meanwhile and was left as it is."
    worker.advance(record, Phase.DONE, message=message)


def destroy(worker: Worker, record: Record) -> None:
    """Discard a VM with all its disks. Its tombstone was written before."""
    driver = worker.hypervisor(record.spec.hypervisor)
    driver.power_off(record.uuid)
    driver.forget(record.uuid)
    for slot in record.saved_disks:
        with suppress(SalternError):  # a target that is away has no claim on a VM that is to go
            _discard(worker, record, slot)
    drop_parts(worker, record)
    checkpoint("destroy.before_remove")
    if record.unsaved:  # where that cannot be yet, it is tried again
        worker.store.set_aside(record, worker.now())
    worker.store.remove(record)
    worker.wake(record.uuid)


STEPS: Final[Mapping[Step, Callable[[Worker, Record], None]]] = {
    Step.FETCH: fetch,
    Step.BUILD: build,
    Step.BOOT: boot,
    Step.ASK_SHUTDOWN: ask_shutdown,
    Step.CHANGE_CD: change_cd,
    Step.NOTE_READY: agent_steps.note_ready,
    Step.GIVE_UP: agent_steps.give_up,
    Step.NOTE_HALT: note_halt,
    Step.SEAL: seal,
    Step.SAVE: save,
    Step.SET_ASIDE: set_aside,
    Step.CLEAN: clean,
    Step.DESTROY: destroy,
}


def _discard(worker: Worker, record: Record, slot: str) -> None:
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


def reporter(worker: Worker, record: Record, phase: str) -> Report:
    """A report function that shows progress, and interrupts the step when it is no longer wanted."""
    started = time.monotonic()
    last = 0.0

    def report(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _REPORT_EVERY_S and done != total:
            return
        last = now
        worker.check_wanted(record)
        rate = done / (now - started) if now > started else None
        eta = (total - done) / rate if rate and total else None
        worker.store.report(record.uuid, Progress(phase=phase, done=done, total=total, rate=rate, eta_s=eta))
        worker.wake(record.uuid)

    return report


def _disk_change(slot: str, **changes: object) -> Callable[[Record], Record]:
    return lambda current: with_disk(current, slot, **changes)
