"""The seed: an ISO image (NoCloud, label `cidata`) with the identity of a guest and its software, for the first boot.

In a VM's folder, until the guest has reported that it is ready:

    user-data     the document for cloud-init that its `user_data` names
    minion.pem    private key of the Salt minion in the guest, made here; only the guest gets it
    seed.iso      the seed, in a drive of its own: it is no part of any saved disk
    agent.log     the reports of the agent; it stays. An earlier instance's is `agent.previous.log`
"""

from __future__ import annotations

import hashlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import OwnerPolicy
from worker_service.fs import atomic_files
from worker_service.guest_agent import user_data
from worker_service.guest_agent.report import LOG
from worker_service.images.download import check_digest
from worker_service.state.record import Record
from worker_service.transfer.registry import source, visit
from worker_service.transfer.uri import Uri, parse

if TYPE_CHECKING:
    from worker_service.state.context import WorkerContext

_PREVIOUS: Final = "agent.previous.log"
_SEED: Final = "seed.iso"
_USER_DATA: Final = "user-data"
_KEY: Final = "minion.pem"
_MAX_USER_DATA: Final = 256 << 10


def seed_of(folder: Path) -> Path | None:
    """The seed in a VM's folder, if it has one."""
    path = folder / _SEED
    return path if path.exists() else None


def new_instance(worker: WorkerContext, record: Record, document: bytes) -> str:
    """Remove the seed of an earlier instance, and write the user-data of this one; return the new instance id."""
    folder = worker.store.folder(record.uuid)
    remove_seed(folder)
    if (folder / LOG).exists():
        (folder / LOG).replace(folder / _PREVIOUS)
    for rotated in folder.glob(f"{LOG}.[0-9]*"):  # by virtlogd
        rotated.unlink(missing_ok=True)
    if document:
        atomic_files.write(folder / _USER_DATA, document)
    return secrets.token_hex(8)


def write_seed(folder: Path, record: Record) -> str:
    """Write the seed of a VM that needs one and is not ready; return the public key of its minion, if any."""
    if not record.spec.wants_seed or record.ready_at is not None:
        return record.minion_key
    from worker_service.guest_agent import seed_iso  # noqa: PLC0415 - most VMs have no seed, and their helpers start faster

    path = folder / _USER_DATA
    document = path.read_bytes() if path.exists() else b""
    keys = None
    if record.spec.minion_master:
        key = folder / _KEY
        if not key.exists():
            atomic_files.write(key, seed_iso.new_key())
        keys = seed_iso.minion_keys(key.read_bytes())
    image = seed_iso.iso(seed_iso.contents(record.spec, record.instance_id or record.uuid, document, keys))
    atomic_files.write(folder / _SEED, image)
    failpoint("seed.written")
    return keys.public if keys else ""


def remove_seed(folder: Path) -> None:
    """Remove the seed and its parts, which contain secrets."""
    for name in (_SEED, _USER_DATA, _KEY):
        (folder / name).unlink(missing_ok=True)


def document_of(record: Record, policy: OwnerPolicy) -> bytes:
    """Return the document that a VM's `user_data` names, or nothing. Raises TransferFailed, Refused, BadImage."""
    return fetched(parse(record.spec.user_data), policy) if record.spec.user_data else b""


def fetched(uri: Uri, policy: OwnerPolicy) -> bytes:
    """Return the document for cloud-init at a URI. Raises TransferFailed, Refused, BadImage."""
    data = b""
    with visit(source(uri, policy), uri, None) as (head, _begins, chunks):
        for chunk in chunks:
            data += chunk
            if len(data) > _MAX_USER_DATA:
                raise Refused(
                    f"{uri} is larger than {_MAX_USER_DATA >> 10} KiB. user_data is a document for cloud-init."
                )
    if head.size is not None and len(data) != head.size:
        raise TransferFailed(f"{uri} broke off after {len(data)} of {head.size} bytes.")
    try:
        check_digest(uri, hashlib.sha256(data).hexdigest())
    except BadImage as err:
        raise BadImage(f"{uri} cannot be used. {err}") from err
    user_data.check(data, str(uri))
    return data
