"""The site's stores, and who we are there.

Secrets stay in files of their own and are read when they are used: no settings, record, log or message ever has one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, TypeVar

from worker_service.contract import Code
from worker_service.core.errors import Refused
from worker_service.core.settings import ImagePolicy, StoreCredentials
from worker_service.transfer.uri import Uri

_MAX_BYTES: Final = 64 << 10
Kind = TypeVar("Kind", bound=StoreCredentials)


def origin(uri: Uri) -> str:
    """The name of the store that a URI lies in: `scheme://host:port`, without a user."""
    return f"{uri.scheme}://{uri.netloc.rpartition('@')[2]}"


def store(policy: ImagePolicy, uri: Uri, kind: type[Kind]) -> Kind:
    """What the settings say of a URI's store; raises Refused where they say nothing, or something else."""
    name = origin(uri)
    found = policy.stores.get(name) or policy.stores.get(f"{uri.scheme}://*")
    if not isinstance(found, kind):
        known = ", ".join(sorted(key for key, each in policy.stores.items() if isinstance(each, kind))) or "none yet"
        raise Refused(
            f"{uri} is in a store that this worker does not know ({known}). "
            f'Add [images.stores."{name}"] to the worker\'s settings, or choose another place.',
            code=Code.POLICY,
        )
    return found


def refuse_user(uri: Uri) -> None:
    """Refuse a user, and with that a password, in a URI: what is fetched from where is shown to users."""
    if "@" in uri.netloc:
        raise Refused(
            f"{uri} has a user in it, and what is in a URI is shown. Leave that out, "
            f'and say who to be there in [images.stores."{origin(uri)}"] in the worker\'s settings.',
            code=Code.POLICY,
        )


def secret(path: Path) -> str:
    """The one line of a secret file. Raises Refused that names the file, where others could read it too."""
    return check_private(path).decode(errors="replace").strip()


def check_private(path: Path) -> bytes:
    """What is in a file that nobody else may read; raises Refused that says what is wrong with it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        raise _useless(path, f"cannot be read: {err.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise _useless(path, "is not a regular file")
        if found.st_mode & 0o077 or found.st_uid not in (0, os.geteuid()):
            raise _useless(path, "can be read by others, or belongs to somebody else: chmod 600, chown root")
        if not (data := file.read(_MAX_BYTES)).strip():
            raise _useless(path, "is empty")
    return data


def _useless(path: Path, why: str) -> Refused:
    return Refused(f"The secret file {path} {why}. Correct it on the worker.", code=Code.POLICY)
