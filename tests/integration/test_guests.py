"""The guests of the tests on a plain QEMU under emulation: they do what their sources say."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from devstack.console import Trouble
from devstack.guests import (
    build_bootchain,
    build_demo,
    demo_boot_files,
    read_counter,
    read_demo_boots,
    read_long_mode,
    write_demo_config,
)
from devstack.guests.build import CACHE, main
from devstack.guests.tools import convert
from tests.integration.qemu import Machine, until

BANNER = "Saltern demo guest"
PROMPT = "demo:~# "
VIRTIO_PORT = (
    "-device",
    "virtio-serial",
    "-chardev",
    "null,id=agent",
    "-device",
    "virtserialport,chardev=agent,name=org.saltern.0",
)
NETWORK = ("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net")
PANIC_DEVICE = ("-device", "pvpanic", "-action", "panic=pause")


class TestBootChain:
    @pytest.mark.parametrize("fmt", ["raw", "qcow2"])
    def test_counts_each_life_and_powers_off(self, tmp_path: Path, fmt: str) -> None:
        raw, image = tmp_path / "raw", tmp_path / "image"
        build_bootchain(raw)
        convert(raw, "raw", image, fmt)
        assert read_counter(image, fmt) == 0
        for lives in range(1, 6):
            with Machine(tmp_path / "machine", image, fmt) as machine:
                assert machine.wait() == 0
            assert read_counter(image, fmt) == lives

    def test_spin_counts_and_never_ends(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, variant="spin")
        with Machine(tmp_path / "machine", image, "raw") as machine:
            until(lambda: read_counter(image, "raw") == 1, 60, lambda: "it did not count")
            machine.qmp("system_powerdown")
            time.sleep(1.0)
            assert machine.status == "running"
        assert read_counter(image, "raw") == 1

    def test_crash_ends_a_machine_that_may_not_reboot(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, variant="crash")
        with Machine(tmp_path / "machine", image, "raw", "-no-reboot") as machine:
            assert machine.wait() == 0
        assert read_counter(image, "raw") == 1

    def test_crash_resets_a_machine_that_may(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, variant="crash")
        with Machine(tmp_path / "machine", image, "raw"):
            until(lambda: read_counter(image, "raw") >= 3, 60, lambda: "it was not reset")

    def test_crash_is_reported_to_a_panic_device(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, variant="crash")
        with Machine(tmp_path / "machine", image, "raw", *PANIC_DEVICE) as machine:
            until(lambda: machine.status == "guest-panicked", 60, lambda: f"it is {machine.status}")
        assert read_counter(image, "raw") == 1

    def test_ends_at_a_key(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, variant="key")
        with Machine(tmp_path / "machine", image, "raw") as machine:
            until(lambda: read_counter(image, "raw") == 1, 60, lambda: "it did not count")
            assert machine.running
            machine.qmp("send-key", keys=[{"type": "qcode", "data": "a"}])
            assert machine.wait() == 0
        assert read_counter(image, "raw") == 1

    def test_ends_at_the_power_button(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, variant="button")
        with Machine(tmp_path / "machine", image, "raw") as machine:
            machine.expect("BootChain\nboot 1\n")
            time.sleep(0.2)
            assert machine.running
            machine.qmp("system_powerdown")
            assert machine.wait() == 0
            machine.expect("boot 1\noff\n")
        assert read_counter(image, "raw") == 1

    @pytest.mark.parametrize(("cpu", "offered"), [("qemu64", True), ("qemu64,-lm", False), ("486", False)])
    def test_says_whether_long_mode_is_offered(self, tmp_path: Path, cpu: str, offered: bool) -> None:
        image = tmp_path / "image"
        build_bootchain(image)
        with pytest.raises(Trouble, match="has not booted"):
            read_long_mode(image, "raw")
        with Machine(tmp_path / "machine", image, "raw", "-cpu", cpu) as machine:
            assert machine.wait() == 0
        assert read_long_mode(image, "raw") is offered

    def test_guest_lives_as_long_as_requested(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image, seconds=3600)
        with Machine(tmp_path / "machine", image, "raw") as machine:
            until(lambda: read_counter(image, "raw") == 1, 60, lambda: "it did not count")
            assert machine.running
        build_bootchain(image, seconds=2)
        begun = time.monotonic()
        with Machine(tmp_path / "machine", image, "raw") as machine:
            assert machine.wait() == 0
        assert time.monotonic() - begun > 1.8  # the BIOS clock's first tick comes early
        assert read_counter(image, "raw") == 1

    def test_disk_of_something_else_is_left_alone(self, tmp_path: Path) -> None:
        image = tmp_path / "image"
        build_bootchain(image)
        with image.open("r+b") as file:
            file.seek(512)
            file.write(b"precious")
        before = image.read_bytes()
        with Machine(tmp_path / "machine", image, "raw") as machine:
            time.sleep(1.0)
            assert machine.status == "running"
        assert image.read_bytes() == before
        with pytest.raises(Trouble, match="not a BootChain image"):
            read_counter(image, "raw")

    @pytest.mark.parametrize("wrong", [{"seconds": -1}, {"seconds": 1 << 32}, {"size": 512}, {"size": 1025}])
    def test_what_cannot_be_is_refused(self, tmp_path: Path, wrong: dict[str, int]) -> None:
        with pytest.raises(ValueError, match=r"^(seconds|size) is "):
            build_bootchain(tmp_path / "image", **wrong)
        assert not list(tmp_path.iterdir())

    def test_command_line(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        image = tmp_path / "image"
        assert main(["bootchain", str(image), "--variant", "spin", "--seconds", "3"]) == 0
        assert image.stat().st_size == 1 << 20
        assert main(["bootchain", str(image), "--seconds", "-3"]) == 1
        assert "seconds is -3" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == [image]


@pytest.fixture(scope="session")
def pristine_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("demo") / "demo.qcow2"
    build_demo(image, CACHE)
    return image


@pytest.fixture
def demo(pristine_demo: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(pristine_demo, tmp_path / "demo.qcow2"))


def booted(folder: Path, image: Path, *more: str) -> Machine:
    return Machine(folder, image, "qcow2", *more, memory_mib=128)


class TestDemo:
    def test_consoles_network_power_button_and_the_count_of_boots(self, demo: Path, tmp_path: Path) -> None:
        assert read_demo_boots(demo, "qcow2") == 0
        with booted(tmp_path / "machine", demo, *NETWORK, *VIRTIO_PORT) as machine:
            seconds = machine.expect(f"{BANNER}, boot 1 of this disk")
            print(f"the banner came after {seconds:.1f} s")  # noqa: T201
            machine.expect(PROMPT)
            machine.type("whoami")
            machine.expect("\nroot\n")
            machine.type("until [ -c /dev/virtio-ports/org.saltern.0 ]; do sleep 1; done; echo port")
            machine.expect("\nport\n")
            machine.type("until ip -4 addr show eth0 | grep inet; do sleep 1; done")
            machine.expect("inet 10.0.2.15/24")
            machine.qmp("system_powerdown")
            assert machine.wait() == 0
        assert read_demo_boots(demo, "qcow2") == 1

        with booted(tmp_path / "machine", demo) as machine:
            machine.expect(f"{BANNER}, boot 2 of this disk")
            machine.expect(PROMPT)
            machine.type("poweroff")
            assert machine.wait() == 0
        assert read_demo_boots(demo, "qcow2") == 2

    def test_boots_from_an_ide_disk_by_dma(self, demo: Path, tmp_path: Path) -> None:
        """Without the boot sector of its partition, no other way is left."""
        raw = tmp_path / "raw"
        convert(demo, "qcow2", raw, "raw")
        with raw.open("r+b") as disk:
            disk.seek(1 << 20)
            disk.write(b"\xfa\xf4" + b"\xeb\xfd")  # it halts
        with Machine(tmp_path / "machine", raw, "raw", memory_mib=128, bus="ide") as machine:
            machine.expect(BANNER)

    def test_power_cut_after_the_banner_loses_no_boot(self, demo: Path, tmp_path: Path) -> None:
        with booted(tmp_path / "machine", demo) as machine:
            machine.expect(BANNER)
        assert read_demo_boots(demo, "qcow2") == 1

    def test_guest_reboots_on_request(self, demo: Path, tmp_path: Path) -> None:
        write_demo_config(demo, "qcow2", "demo.after=1\ndemo.action=reboot\n")
        with booted(tmp_path / "machine", demo) as machine:
            machine.expect(f"{BANNER}, boot 1 of this disk")
            machine.expect(f"{BANNER}, boot 2 of this disk")

    def test_guest_crashes_on_request(self, demo: Path, tmp_path: Path) -> None:
        write_demo_config(demo, "qcow2", "demo.after=1\ndemo.action=crash\n")
        with booted(tmp_path / "machine", demo, *PANIC_DEVICE) as machine:
            machine.expect(BANNER)
            machine.expect("Kernel panic - not syncing: sysrq triggered crash")
            until(lambda: machine.status == "guest-panicked", 60, lambda: f"it is {machine.status}")

    def test_kernel_arguments_win_over_the_disk(self, demo: Path, tmp_path: Path) -> None:
        write_demo_config(demo, "qcow2", "demo.after=1\ndemo.action=reboot\n")
        kernel, initrd = demo_boot_files(CACHE)
        arguments = "console=ttyS0 quiet demo.after=1 demo.action=poweroff"
        direct = ("-kernel", str(kernel), "-initrd", str(initrd), "-append", arguments)
        with booted(tmp_path / "machine", demo, *direct) as machine:
            machine.expect(BANNER)
            assert machine.wait() == 0
        assert read_demo_boots(demo, "qcow2") == 1
