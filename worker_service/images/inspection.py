"""Inspect a fetched file before any other program reads it. Its format is detected once, and stated ever after."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from worker_service.core.errors import BadImage
from worker_service.images.wholeness import require_whole

Use = Literal["disk", "data", "cd"]
"""`disk` must boot (hda), `data` need not (hdb), `cd` is for the CD drive."""

SECTOR: Final = 512
_CHUNK: Final = 1 << 16
_BOOT_SIGNATURE: Final = b"\x55\xaa"
_TAR_AT: Final = 257
_QCOW2_ENCRYPTION: Final = struct.Struct(">32xI")
_QCOW2_FEATURES: Final = struct.Struct(">4xI64xQ")
_CORRUPT: Final = 1 << 1


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """The format and size of an image. Sizes in bytes."""

    format: Literal["raw", "qcow2", "iso"]
    virtual_size: int
    bootable: bool = True
    is_tar: bool = False
    size: int | None = None
    """Bytes of the file. None in notes of 0.2, whose files were not examined for a missing end."""
    note: str = ""
    """What was left out of the image when it was unpacked."""


def inspect(path: Path, *, max_virtual_size: int, may_lack_end: bool = False) -> Image:
    """Return the format of a file. Raises BadImage unless it is a plain raw, qcow2 or ISO image.

    Backing files, external data files and files of two formats at once are refused: QEMU would follow them
    to files of the host. Source: oslo.utils format_inspector, which OpenStack uses for the same purpose.

    Args:
        path: the file.
        max_virtual_size: the limit of the size that a guest sees.
        may_lack_end: for a raw disk or a CD whose bytes are proven to be the demanded ones. A qcow2 never lacks its
            end; `qemu_img.check` examines that.
    """
    if path.is_symlink() or not path.is_file():
        raise BadImage("It is not a regular file. Name a disk image.")
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return inspect_open(fd, max_virtual_size=max_virtual_size, may_lack_end=may_lack_end)
    finally:
        os.close(fd)


def inspect_open(fd: int, *, max_virtual_size: int, may_lack_end: bool = False) -> Image:
    """Return the format of an open regular file; see `inspect`."""
    from oslo_utils.imageutils import format_inspector  # noqa: PLC0415 - takes 0.1 s, which a cached image does not need

    try:
        found = _detect(fd)
        kind = str(found)
        if kind in ("qcow2", "iso"):
            found.safety_check()
            virtual_size = int(found.virtual_size)
        elif kind in ("raw", "gpt"):  # gpt: a raw disk with a partition table, old or new
            kind, virtual_size = "raw", os.fstat(fd).st_size
        elif kind == "luks":
            raise BadImage("It is encrypted (LUKS), and its key is not known here. Store a decrypted disk.")
        else:
            raise BadImage(f"It is a {kind} image. Convert it with `qemu-img convert -O qcow2` first.")
    except BadImage:
        raise
    except format_inspector.SafetyCheckFailed as err:
        names = ", ".join(sorted(err.failures))
        raise BadImage(
            f"It refers to other files or has unsafe features ({names}). "
            "Flatten it with `qemu-img convert -O qcow2` first."
        ) from err
    except Exception as err:  # a malicious file may make the inspector raise anything
        raise BadImage(f"It is damaged or two formats at once ({err}). Make the file again.") from err
    image = _sized(fd, kind, virtual_size, max_virtual_size)
    if kind == "qcow2":
        _require_readable(os.pread(fd, SECTOR, 0))
    elif not may_lack_end:
        require_whole(fd, is_cd=kind == "iso")
    return image


def _require_readable(header: bytes) -> None:
    """Raise BadImage for a qcow2 that QEMU would ask a key for, or refuse to write on top of."""
    (encryption,) = _QCOW2_ENCRYPTION.unpack_from(header)
    version, features = _QCOW2_FEATURES.unpack_from(header)
    if encryption:
        raise BadImage("It is an encrypted qcow2, and its key is not known here. Store a decrypted disk.")
    if version > 2 and features & _CORRUPT:
        raise BadImage("QEMU has marked it as corrupt. Make it again, or repair it with `qemu-img check -r all`.")


def _detect(fd: int) -> Any:
    """Return the format of a file. A bootable CD also has a partition table; this pair counts as a CD."""
    from oslo_utils.imageutils import format_inspector  # noqa: PLC0415 - see above

    os.lseek(fd, 0, os.SEEK_SET)
    with os.fdopen(fd, "rb", closefd=False) as file:
        wrapper = format_inspector.InspectWrapper(file)
        while wrapper.formats is None and wrapper.read(_CHUNK):
            pass
        wrapper.close()
    by_name = {str(found): found for found in wrapper.formats or ()}
    # QEMU reads both as plain sectors, so neither can lead it to another file.
    return by_name["iso"] if set(by_name) == {"iso", "gpt"} else wrapper.format


def _sized(fd: int, kind: str, virtual_size: int, limit: int) -> Image:
    if virtual_size > limit:
        raise BadImage(
            f"Its virtual size is {virtual_size >> 30} GiB, the limit here {limit >> 30} GiB. "
            "Use a smaller one, or raise images.max_virtual_gib in the worker's settings."
        )
    if kind == "raw" and (virtual_size == 0 or virtual_size % SECTOR):
        raise BadImage(f"It is no disk image: {virtual_size} bytes are not whole sectors of {SECTOR}. Check the URI.")
    first = os.pread(fd, SECTOR, 0) if kind == "raw" else b""
    return Image(
        format=kind,  # type: ignore[arg-type]
        virtual_size=virtual_size,
        bootable=kind != "raw" or first.endswith(_BOOT_SIGNATURE),
        is_tar=first[_TAR_AT:].startswith(b"ustar"),
        size=os.fstat(fd).st_size,
    )


def check_use(image: Image, use: Use | None) -> None:
    """Raise BadImage if an image does not fit its use."""
    if use is None:
        return
    if image.is_tar and use != "data":  # a guest may read a second disk as a tape
        raise BadImage("It is a .tar archive. Unpack it, and store the disk image that is in it.")
    if use == "cd":
        if image.format == "qcow2":
            raise BadImage("It is a qcow2 disk, not a CD. Use it as hda_image or hdb_image.")
        if image.format != "iso":
            raise BadImage("It is no CD: it has no file system of one (ISO 9660 or UDF). Check the file at the URI.")
        return
    if image.format == "iso":
        raise BadImage("It is a CD image. Use it as cd_image, with a disk such as hda_image=blank:20G.")
    if use == "disk" and not image.bootable:
        raise BadImage(
            "It is no disk image: neither qcow2 nor a raw disk with a boot sector. Check the file at the URI."
        )
