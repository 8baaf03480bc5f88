"""The steps after a halt, before saving: note the cause, flatten the disks."""

from __future__ import annotations

from worker_service.core.failpoints import failpoint
from worker_service.fs import atomic_files
from worker_service.guest_agent.readiness import State
from worker_service.hypervisor.base import DomainState
from worker_service.images import flatten
from worker_service.images.overlay import Chain
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import after_halt, halt_cause, kept_message
from worker_service.state.observation import read_evidence, read_readiness
from worker_service.state.outside_changes import disks_at_halt
from worker_service.state.record import NOT_FLAT, Phase, Record
from worker_service.steps import disk_guard, install, seed_files
from worker_service.steps.progress import disk_change, reporter
from worker_service.steps.retry import begin_try


def note_halt(worker: WorkerContext, record: Record) -> None:
    """Note the cause of the halt. With the targets, it decides whether the disks are saved, discarded or kept."""
    domain = worker.domain(record)
    readiness = read_readiness(worker, record, domain)
    cause = halt_cause(record, domain, read_evidence(worker, record, domain))
    moved, in_doubt = disks_at_halt(record, domain)
    ending = Phase.KEPT if in_doubt else after_halt(record, cause, readiness)
    if ending is Phase.START_FAILED:
        install.failed_to_start(worker, record, readiness)
        return
    folder, message = worker.store.folder(record.uuid), ""
    problem = " ".join(_doubt(record, domain, disk_name) for disk_name in in_doubt) or None
    if ending is Phase.KEPT:
        message = kept_message(record, cause, str(folder), saved_memory=domain.saved_memory)
    elif not record.disks_stay:
        seed_files.remove_seed(folder)
    # A guest may have reported that it is ready just before its halt.
    ready = install.ready_fields(worker, readiness) if record.installing and readiness.state is State.READY else {}
    disks = {**record.disks, **moved}
    noted = {"halt_cause": cause, "message": message, "problem": problem, "shutdown_asked": False, "disks": disks}
    worker.advance(record, ending, **noted, **ready)


def _doubt(record: Record, domain: DomainState, disk_name: str) -> str:
    known, named = record.disks[disk_name].layers(disk_name)[0].path, domain.disks[disk_name][0].path
    return (
        f"Its domain names {named} for {disk_name}, but its guest was last seen to write to {known}. Start and "
        "shutdown use the latter, `virsh start` the former."
    )


def flatten_disks(worker: WorkerContext, record: Record) -> None:
    """Flatten each disk that is to be saved, in the form of the target, and note its digest.

    The flattened file never changes afterwards: it is staged, verified and named in the manifest.
    """
    record = begin_try(worker, record)
    disk_guard.require_idle(worker, record)
    driver, folder = worker.hypervisor(record.spec.hypervisor), worker.store.folder(record.uuid)
    for disk_name in record.unsaved_disks:
        form, disk = record.targets[disk_name].form, record.disks[disk_name]
        if disk.flat_sha256 and disk.flat_form == form:
            continue
        flat, part = folder / f"{disk_name}.flat.{form.suffix}", folder / f"{disk_name}.flat.part"
        if disk.flat_sha256:  # in another form; the new one needs the space
            record = worker.note(record, disk_change(disk_name, **NOT_FLAT))
            (folder / disk.flat_name(disk_name)).unlink(missing_ok=True)
        chain = Chain(
            layers=disk_guard.layers(worker, record, disk_name),
            base=worker.cache.lend(disk.base) if disk.base and disk.on_base else None,
            base_format=disk.base_format,
            largest=max(disk.virtual_size, worker.policy_of(record.owner).max_virtual_gib << 30),
        )
        driver.flatten(chain, part, form, reporter(worker, record, f"flatten {disk_name}"))
        failpoint("flatten.flattened")
        digest = flatten.digest_of_flat(part, reporter(worker, record, f"digest {disk_name}"))
        part.replace(flat)
        atomic_files.sync_folder(folder)
        failpoint("flatten.renamed")
        made = {"flat_file": flat.name, "flat_sha256": digest, "flat_size": flat.stat().st_size, "flat_form": form}
        record = worker.note(record, disk_change(disk_name, **made))
    worker.advance(record, Phase.SAVING)
