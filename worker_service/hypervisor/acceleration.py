"""Choose the accelerator of guests. `auto` uses KVM only after KVM has run what an operating system runs.

/dev/kvm may exist and not work: inside some virtual machines the firmware starts, libvirt advertises `kvm`, and Linux
stops on its first locked 16-byte exchange, after a minute for work that takes hardware a second. So a boot sector of
512 bytes is booted once (`kvm_probe.asm`). It tries paging, timer interrupts, that instruction, and speed. The result
is remembered until the host boots again.

Standard library only: short-lived processes import this.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from worker_service.fs import atomic_files, locks

KVM_DEVICE: Final = Path("/dev/kvm")
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_SECTOR: Final = 512
_POLL_S: Final = 0.02
_PASSED_EXIT_CODE: Final = 85  # isa-debug-exit: (0x2A << 1) | 1
_INTERPRETER_GAVE_UP: Final = "KVM internal error"

_PROBE_CODE: Final = bytes.fromhex(
    "fafc31c08ed88ec08ed0bc007cea127c0000b052e6e9bf0010b9001831c0f3abc70600100320c70600200330c70600308300"
    "0f0116287d0f20c00c010f22c0ea447c080066b810008ed88ec08ed0b050e6e90f20e00c200f22e0b8001000000f22d8b980"
    "0000c00f3280cc010f300f20c00d000000800f22c0ea807c00001800bc007c0000b04ce6e9bf00420000c707f97c1800c747"
    "04008e000048c74708000000000f011c252e7d0000b011e620b020e621b004e621b001e621b0fee621b034e643b0a9e640b0"
    "04e64031dbfbf4fa83fb2072f8b054e6e9be00400000f0480fc70eb058e6e9b90048e801ffc975fcb053e6e9b02ae6f4f450"
    "ffc3b020e6205848cf90909090900000000000000000ffff0000009acf00ffff00000092cf00ffff0000009aaf001f00087d"
    "00000f020040"
)
"""kvm_probe.asm, assembled; the zeros up to the signature are left out."""

_NOT_REACHED: Final[Sequence[tuple[str, str]]] = (
    ("R", "did not start the boot sector"),
    ("P", "did not reach protected mode"),
    ("L", "did not reach long mode with paging"),
    ("T", "did not wake a halted processor by timer interrupts"),
    ("X", "did not run a locked 16-byte exchange, which Linux needs"),
    ("S", "did not compute 64 million instructions, which takes hardware some 20 ms"),
)
"""The letter of each stage in kvm_probe.asm, in order, and the meaning of a missing letter."""


class Acceleration(StrEnum):
    """The qemu accelerator of guests. KVM is libvirt's domain type `kvm`, TCG its type `qemu`."""

    KVM = "kvm"
    TCG = "tcg"


@dataclass(frozen=True, slots=True)
class Proof:
    """The result of a probe: whether guests may rely on the accelerator, a sentence with the reason, the time taken."""

    works: bool
    reason: str
    seconds: float


def choose(setting: str, proof: Callable[[], Proof]) -> tuple[Acceleration, str]:
    """Return the accelerator for the setting `auto`, `kvm` or `tcg`, and a sentence for users with the reason.

    `proof` is called for `auto` only; a named accelerator is used without a probe. Raises ValueError for any other
    setting.
    """
    if setting in tuple(Acceleration):
        return Acceleration(setting), f"The settings ask for {setting}."
    if setting != "auto":
        raise ValueError(f"acceleration is {setting!r}: use auto, kvm or tcg")
    found = proof()
    chosen = Acceleration.KVM if found.works else Acceleration.TCG
    return chosen, found.reason if found.works else f"{found.reason} Guests are emulated, which is slower."


def prove_kvm(qemu: str = "qemu-system-x86_64", timeout_s: float = 5.0) -> Proof:
    """Boot the probe under KVM. A KVM that is missing, forbidden or broken is a finding, never an exception."""
    begun = time.monotonic()
    if obstacle := _obstacle():
        return Proof(works=False, reason=obstacle, seconds=time.monotonic() - begun)
    return run_probe(Acceleration.KVM, qemu, timeout_s)


def run_probe(accelerator: Acceleration, qemu: str, timeout_s: float) -> Proof:
    """Boot the probe under the accelerator, for `timeout_s` seconds at most.

    Under TCG the probe must pass. That control shows that a failure is KVM's and not the probe's.
    """
    begun = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix="saltern-probe-") as name:
            folder = Path(name)
            (folder / "disk").write_bytes(probe_image())
            exit_code = _boot(accelerator, qemu, folder, begun + timeout_s)
            stages = _text(folder / "stages")
            log = _text(folder / "log")
    except OSError as err:
        return Proof(works=False, reason=f"{accelerator} could not be tried: {err}.", seconds=time.monotonic() - begun)
    seconds = time.monotonic() - begun
    passed = exit_code == _PASSED_EXIT_CODE and stages == "".join(letter for letter, _ in _NOT_REACHED)
    return Proof(
        works=passed,
        reason=_success(accelerator, seconds) if passed else _failure(accelerator, exit_code, stages, log, seconds),
        seconds=seconds,
    )


def probe_image() -> bytes:
    """Return the boot sector of kvm_probe.asm, byte for byte as nasm assembles it."""
    return _PROBE_CODE.ljust(_SECTOR - 2, b"\0") + b"\x55\xaa"


def cached_proof(
    cache_file: Path, qemu: str = "qemu-system-x86_64", *, prove: Callable[[str], Proof] = prove_kvm
) -> Proof:
    """Return the proof for this boot of the host and this qemu binary (path and mtime); run the probe if needed.

    Of many concurrent callers one runs the probe and the others wait for it, by a lock beside the file. Only the result
    of a probe is remembered; each call checks again whether /dev/kvm is missing or forbidden. After the file is removed
    the next call runs the probe again. Raises OSError if the file's folder is not writable.
    """
    if obstacle := _obstacle():
        return Proof(works=False, reason=obstacle, seconds=0.0)
    subject = _subject(qemu)
    if known := _remembered(cache_file, subject):
        return known
    with locks.locked(cache_file.with_name(f"{cache_file.name}.lock")):
        if known := _remembered(cache_file, subject):
            return known
        found = prove(qemu)
        atomic_files.write(cache_file, json.dumps({"subject": subject, "proof": asdict(found)}).encode())
        return found


def _obstacle() -> str | None:
    """Return why KVM cannot work, as far as that is clear without a probe."""
    if not KVM_DEVICE.exists():
        return f"There is no {KVM_DEVICE}."
    if not os.access(KVM_DEVICE, os.R_OK | os.W_OK):
        return f"{KVM_DEVICE} may not be opened by this user."
    return None


def _subject(qemu: str) -> dict[str, str | int]:
    """Return what a proof is valid for: this qemu, and this boot of the host."""
    path = Path(shutil.which(qemu) or qemu)
    mtime_ns = path.stat().st_mtime_ns if path.exists() else 0
    return {"boot_id": BOOT_ID.read_text("ascii").strip(), "qemu": str(path), "qemu_mtime_ns": mtime_ns}


def _remembered(cache_file: Path, subject: dict[str, str | int]) -> Proof | None:
    """Return the proof in the file if it is about the subject. A file that cannot be decoded is no proof."""
    try:
        content = json.loads(cache_file.read_bytes())
        return Proof(**content["proof"]) if content["subject"] == subject else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None


def _boot(accelerator: Acceleration, qemu: str, folder: Path, deadline: float) -> int | None:
    """Run qemu on `folder`/disk until it ends, gives up or times out. Return its exit code, or None if it was killed.

    The guest's letters go to `folder`/stages, qemu's messages to `folder`/log.
    """
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(_argv(accelerator, qemu, folder), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            while process.poll() is None and time.monotonic() < deadline:
                if _INTERPRETER_GAVE_UP in _text(folder / "log"):  # qemu then waits, paused, for an operator
                    break
                time.sleep(_POLL_S)
            return process.poll()
        finally:
            process.kill()
            process.wait()


def _argv(accelerator: Acceleration, qemu: str, folder: Path) -> list[str]:
    # setpriv becomes qemu under the same pid, so a probe whose parent dies ends too.
    return [
        *("setpriv", "--pdeathsig", "KILL", qemu),
        *("-machine", f"pc,accel={accelerator}", "-m", "16", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none", "-serial", "none", "-monitor", "none", "-parallel", "none"),
        *("-drive", f"file={folder / 'disk'},format=raw,if=ide"),
        *("-debugcon", f"file:{folder / 'stages'}", "-device", "isa-debug-exit,iobase=0xf4,iosize=1"),
    ]


def _success(accelerator: Acceleration, seconds: float) -> str:
    return f"{accelerator} works: paging, interrupts and speed were tried in {seconds:.1f} s."


def _failure(accelerator: Acceleration, exit_code: int | None, stages: str, log: str, seconds: float) -> str:
    """Return the sentence for a failed probe: how far it came, and how it ended."""
    missing = next((meaning for letter, meaning in _NOT_REACHED if letter not in stages), "did not report its end")
    if _INTERPRETER_GAVE_UP in log:
        end = "KVM met an instruction that it cannot interpret"
    elif exit_code is None:
        end = "it was stopped"
    else:
        last = next((line for line in reversed(log.splitlines()) if line.strip()), "no message")
        end = f"qemu exited with code {exit_code}: {last.strip()[:200]}"
    return f"{accelerator} does not work here: within {seconds:.1f} s the probe {missing} ({end})."


def _text(path: Path) -> str:
    return path.read_text("utf-8", "replace") if path.exists() else ""
