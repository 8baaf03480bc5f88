"""The site's stores and the worker's credentials there.

Secrets stay in files of their own and are read when they are used. They are in no settings, record, log or message.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, TypeVar

from worker_service.contract import Code
from worker_service.contract.uri_secrets import has_secret
from worker_service.core.errors import Refused
from worker_service.core.settings import ImagePolicy, StoreCredentials
from worker_service.transfer import access
from worker_service.transfer.uri import Uri

_MAX_BYTES: Final = 64 << 10
Kind = TypeVar("Kind", bound=StoreCredentials)


def origin(uri: Uri) -> str:
    """Return the name of the store of a URI: `scheme://host:port`, without a user."""
    return access.origin(uri.scheme, uri.netloc)


def store(policy: ImagePolicy, uri: Uri, kind: type[Kind]) -> Kind:
    """Return the settings of a URI's store.

    Raises Refused for an unknown store, one of another kind, and a folder that is closed to the owner.
    """
    return store_and_folder(policy, uri, kind)[0]


def store_and_folder(policy: ImagePolicy, uri: Uri, kind: type[Kind]) -> tuple[Kind, str | None]:
    """Return the settings of a URI's store, and the folder that its entry names, if any. Raises Refused as `store`."""
    found = access.store_at(policy, uri.scheme, uri.netloc, uri.path)
    if found and found.store is None:
        raise closed(policy, str(uri))
    if found is None or not isinstance(found.store, kind):
        raise Refused(
            f"{uri} is in a store that this worker does not know ({_reachable(policy, uri.scheme)}). "
            f'Add [images.stores."{origin(uri)}"] to the worker\'s settings, or choose another place.',
            code=Code.POLICY,
        )
    return found.store, found.folder


def not_saved_to(uri: Uri) -> Refused:
    """Return the error for a store that disks are not saved to."""
    return Refused(
        f"{uri} is in a store that disks are not saved to. Choose another place, "
        "or set save = true for this store in the worker's settings (images.stores).",
        code=Code.POLICY,
    )


def closed(policy: ImagePolicy, uri: str) -> Refused:
    """Return the error for a folder of a store that is closed to an owner."""
    scheme = uri.partition(":")[0]
    whom = f"the VMs of {policy.owner}" if policy.owner else "VMs without an owner"
    return Refused(
        f"{uri} is in a folder that is closed to {whom} (open: {_reachable(policy, scheme)}). "
        "Choose another place, or change images.stores in the worker's settings.",
        code=Code.POLICY,
    )


def _reachable(policy: ImagePolicy, scheme: str) -> str:
    keys = [key for key, each in policy.stores.items() if access.names(each.owners, policy.owner)]
    found = access.reachable((key for key in keys if key.startswith(f"{scheme}:")), policy.owner)
    return ", ".join(sorted(found)) or "none yet"


def refuse_secrets(uri: Uri) -> None:
    """Refuse a user in a URI, and thus a password, and signatures and tokens in its query."""
    is_user = "@" in uri.netloc
    if is_user or has_secret(uri.text):
        raise Refused(
            f"{uri} has a {'user' if is_user else 'secret'} in it, and URIs are shown to all users. Leave it out, "
            f'and put the credentials into [images.stores."{origin(uri)}"] in the worker\'s settings '
            '(kind = "query" for a signature). '
            "If it came through Salt, change it: it is in the job cache.",
            code=Code.POLICY,
        )


def secret(path: Path) -> str:
    """Return the one line of a secret file. Raises Refused that names the file if other users can read it."""
    return check_private(path).decode(errors="replace").strip()


def check_private(path: Path) -> bytes:
    """Return the content of a private file. Raises Refused that says what is wrong with the file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise _refused(path, f"cannot be read: {err.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _refused(path, "is not a regular file")
        if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
            raise _refused(path, "can be read by others, or belongs to another user: chmod 600, chown root")
        if not (data := file.read(_MAX_BYTES)).strip():
            raise _refused(path, "is empty")
    return data


def _refused(path: Path, reason: str) -> Refused:
    return Refused(f"The secret file {path} {reason}. Correct it on the worker.", code=Code.POLICY)
