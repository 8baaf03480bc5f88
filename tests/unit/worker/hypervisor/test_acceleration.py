"""The choice of an accelerator, the remembered proof, and the bytes of the probe. No VM boots here."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.lib.support import PATIENCE_S
from worker_service.hypervisor import acceleration
from worker_service.hypervisor.acceleration import Acceleration, Proof, cached_proof, choose, probe_image, prove_kvm

WORKS = Proof(works=True, reason="kvm works.", seconds=0.1)
BROKEN = Proof(works=False, reason="kvm does not work.", seconds=5.0)


@pytest.fixture
def kvm_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for /dev/kvm, which a test may take away."""
    device = tmp_path / "kvm"
    device.touch()
    monkeypatch.setattr(acceleration, "KVM_DEVICE", device)
    return device


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A stand-in for the qemu binary, which a test may upgrade."""
    binary = tmp_path / "qemu"
    binary.touch(mode=0o755)
    return binary


class Prover:
    """Counts how often it was asked."""

    def __init__(self, answer: Proof) -> None:
        self.answer = answer
        self.probes = 0

    def __call__(self, _qemu: str) -> Proof:
        self.probes += 1
        return self.answer


@pytest.mark.parametrize(
    ("setting", "proof", "chosen", "reason"),
    [
        ("auto", WORKS, Acceleration.KVM, "kvm works."),
        ("auto", BROKEN, Acceleration.TCG, "kvm does not work. Guests are emulated, which is slower."),
        ("kvm", None, Acceleration.KVM, "The settings ask for kvm."),
        ("tcg", None, Acceleration.TCG, "The settings ask for tcg."),
    ],
)
def test_choice_follows_from_setting_and_proof(
    setting: str, proof: Proof | None, chosen: Acceleration, reason: str
) -> None:
    def proof_if_allowed() -> Proof:
        assert proof is not None, "no proof was to be asked for"
        return proof

    assert choose(setting, proof_if_allowed) == (chosen, reason)


@pytest.mark.parametrize("setting", ["", "KVM", "xen"])
def test_unknown_choice_is_refused(setting: str) -> None:
    with pytest.raises(ValueError, match="use auto, kvm or tcg"):
        choose(setting, lambda: WORKS)


def test_missing_device_needs_no_probe(kvm_device: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kvm_device.unlink()
    monkeypatch.delattr(acceleration, "run_probe")
    prover = Prover(WORKS)
    for found in (prove_kvm(), cached_proof(tmp_path / "proof.json", prove=prover)):
        assert not found.works
        assert found.reason == f"There is no {kvm_device}."
        assert found.seconds < 1
    assert prover.probes == 0
    assert not (tmp_path / "proof.json").exists()  # the module may be loaded a minute later


def test_proof_is_made_once(kvm_device: Path, qemu: Path, tmp_path: Path) -> None:
    del kvm_device
    prover = Prover(BROKEN)
    cache_file = tmp_path / "proof.json"
    assert [cached_proof(cache_file, str(qemu), prove=prover) for _ in range(3)] == [BROKEN] * 3
    assert prover.probes == 1
    assert not list(tmp_path.glob("*.part"))


def _new_boot(_qemu: Path, tmp_path: Path, _cache_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("another\n")
    monkeypatch.setattr(acceleration, "BOOT_ID", boot_id)


def _new_qemu(qemu: Path, *_: object) -> None:
    os.utime(qemu, ns=(1, 1))


def _torn_file(_qemu: Path, _tmp_path: Path, cache_file: Path, _monkeypatch: object) -> None:
    cache_file.write_bytes(cache_file.read_bytes()[:20])


def _foreign_file(_qemu: Path, _tmp_path: Path, cache_file: Path, _monkeypatch: object) -> None:
    cache_file.write_text(json.dumps(["something", "else"]))


def _removed_file(_qemu: Path, _tmp_path: Path, cache_file: Path, _monkeypatch: object) -> None:
    cache_file.unlink()


@pytest.mark.parametrize("change", [_new_boot, _new_qemu, _torn_file, _foreign_file, _removed_file])
def test_proof_is_repeated_after_a_change(
    change: Callable[..., None], kvm_device: Path, qemu: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del kvm_device
    cache_file = tmp_path / "proof.json"
    cached_proof(cache_file, str(qemu), prove=Prover(BROKEN))
    change(qemu, tmp_path, cache_file, monkeypatch)
    prover = Prover(WORKS)
    assert cached_proof(cache_file, str(qemu), prove=prover) == WORKS
    assert prover.probes == 1


def _prove_slowly(cache_file: Path, qemu: Path, tally: Path) -> None:
    def prove(_qemu: str) -> Proof:
        with tally.open("a") as file:
            file.write("x")
        time.sleep(0.2)
        return BROKEN

    assert cached_proof(cache_file, str(qemu), prove=prove) == BROKEN


def test_fifty_processes_prove_once(kvm_device: Path, qemu: Path, tmp_path: Path) -> None:
    del kvm_device
    tally = tmp_path / "tally"
    fork = multiprocessing.get_context("fork")
    callers = [fork.Process(target=_prove_slowly, args=(tmp_path / "proof.json", qemu, tally)) for _ in range(50)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(PATIENCE_S)
    assert [caller.exitcode for caller in callers] == [0] * 50
    assert tally.read_text() == "x"


def test_nasm_still_makes_these_bytes(tmp_path: Path) -> None:
    source = Path(acceleration.__file__).with_name("kvm_probe.asm")
    binary = tmp_path / "probe"
    subprocess.run(["nasm", "-Wall", "-Werror", "-f", "bin", source, "-o", binary], check=True)
    assert probe_image() == binary.read_bytes()
    assert len(probe_image()) == 512
