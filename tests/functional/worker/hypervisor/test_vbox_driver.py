"""The driver for VirtualBox with a VBoxManage of the tests: lives, files that stay and go, errors, and media."""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.lib import fake_vboxmanage
from worker_service.contract import HaltCause
from worker_service.core.errors import DiskInUse, HypervisorError, TransferFailed
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import ABSENT, Console, DiskSource, DomainSpec, NewDisk, Power
from worker_service.hypervisor.vbox import disks as vbox_disks
from worker_service.hypervisor.vbox import driver as vbox_driver
from worker_service.hypervisor.vbox.driver import Vbox
from worker_service.images import converted
from worker_service.images.overlay import Chain, Layer
from worker_service.transfer.uri import Form

UUID = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER = "bbbbbbbb-0000-4000-8000-000000000002"
MIB = 1 << 20


class Stand:
    """A driver, the fake's files, and a VM's folder."""

    def __init__(self, folder):
        self.fake, self.folder, self.images = folder / "fake", folder / "vms" / UUID, folder / "images"
        for each in (self.fake, self.folder, self.images):
            each.mkdir(parents=True)
        program = folder / "VBoxManage"
        command = f'{sys.executable} -S -E {fake_vboxmanage.__file__} "$@"'
        program.write_text(f"#!/bin/sh\nFAKE_VBOX={self.fake} exec {command}\n")
        program.chmod(0o755)
        self.driver = Vbox(Settings(data_root=folder, vboxmanage=str(program)))
        self.base = self.images / ("ab" * 32)
        self.base.write_bytes(b"base" * (MIB // 4) + bytes(MIB))

    def spec(self, **changes):
        hda = self.folder / "hda.vdi"
        if not hda.exists():
            self.driver.make_disk(NewDisk(path=hda, size=2 * MIB, base=self.base, base_format="raw"))
        full = {
            "uuid": UUID,
            "name": "web01",
            "cpu_count": 1,
            "memory_mib": 64,
            "arch": "x86_64",
            "disks": (DiskSource("hda", (Layer(str(hda), "vdi"),), self.base, "raw"),),
            "cd": None,
            "console_log": self.folder / "console.log",
            "agent_log": self.folder / "agent.log",
            "network": "none",
            "mac": "52:54:00:44:dc:5c",
        }
        return DomainSpec(**{**full, **changes})

    @property
    def machines(self):
        with fake_vboxmanage.machines_in(self.fake) as machines:
            return machines

    def change(self, **fields):
        """Change the VM's machine past the driver."""
        with fake_vboxmanage.machines_in(self.fake) as machines:
            machines[UUID].update(fields)

    def guest_ends(self):
        machine = self.machines[UUID]
        fake_vboxmanage.end(machine, "guest")
        self.change(**machine)

    def fault(self, command, *texts):
        (self.fake / "faults.json").write_text(json.dumps({command: texts}))

    def calls(self, command):
        lines = (self.fake / "calls").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == command]

    def say(self, name, text):
        """Write to a serial port, as the guest does."""
        with (self.folder / "vbox" / name).open("a") as port:
            port.write(text)


@pytest.fixture
def stand(tmp_path, monkeypatch):
    monkeypatch.setattr(vbox_driver.events, "any_process", lambda: True)  # the fake's machines have none
    return Stand(tmp_path)


def test_life_from_start_to_the_end_of_its_definition(stand):
    driver = stand.driver
    assert driver.state(UUID) is ABSENT
    assert driver.console(UUID) is None
    driver.start(stand.spec())
    driver.start(stand.spec())
    assert len(stand.calls("startvm")) == 1
    assert [stand.machines[UUID][f"drives-{place}"] for place in ("0-0", "1-0")] == [
        str(stand.folder / "hda.vdi"),
        "emptydrive",
    ]
    found = driver.state(UUID)
    assert (found.power, found.name) == (Power.RUNNING, "web01")
    assert found.disks == {"hda": (Layer(str(stand.folder / "hda.vdi"), "vdi"), Layer(stand.base.name, ""))}
    assert driver.console(UUID) == Console()
    assert driver.screenshot(UUID) == fake_vboxmanage.PNG
    for _ in range(2):
        driver.suspend(UUID)
    assert driver.state(UUID).power is Power.PAUSED
    for _ in range(2):
        driver.resume(UUID)
    with pytest.raises(HypervisorError, match=r"runs\. It keeps its definition"):
        driver.forget(UUID)
    for _ in range(2):
        driver.power_off(UUID)
    assert driver.state(UUID).cause is HaltCause.KILLED
    driver.forget(UUID)
    driver.forget(UUID)
    driver.power_off(UUID)
    assert driver.state(UUID) is ABSENT
    assert sorted(path.name for path in stand.folder.iterdir()) == ["agent.log", "console.log", "hda.vdi"]


def test_guest_that_powers_off_is_no_machine_that_was_killed(stand):
    stand.driver.start(stand.spec())
    stand.guest_ends()
    assert stand.driver.state(UUID).cause is HaltCause.GUEST


def test_crashed_guest_is_powered_off_at_the_first_look(stand):
    stand.driver.start(stand.spec())
    machine = stand.machines[UUID]
    fake_vboxmanage.say(machine, "00:00:06.7 Console: Machine state changed to 'Stuck'\n")
    stand.change(VMState="gurumeditation")
    found = stand.driver.state(UUID)
    assert (found.power, found.cause) == (Power.OFF, HaltCause.CRASHED)


def test_dead_machine_is_looked_at_once_its_daemon_knows(stand, monkeypatch):
    """VirtualBox's daemon may crash otherwise, and with it all machines."""
    processes = {UUID: 7}
    monkeypatch.setattr(vbox_driver.events, "by_machine", lambda: processes)
    stand.driver.start(stand.spec())
    for path in (stand.folder / "vbox").rglob("*"):
        os.utime(path, (0, 0))
    assert stand.driver.state(UUID).on
    processes.clear()
    waited = []

    def notice(_seconds):
        waited.append(len(stand.calls("showvminfo")))
        stand.change(VMState="aborted")

    clock = SimpleNamespace(sleep=notice, monotonic=time.monotonic, time=time.time)
    monkeypatch.setattr(vbox_driver, "time", clock)
    assert stand.driver.state(UUID).cause is HaltCause.CRASHED
    assert waited == [1]


def test_machine_that_was_only_defined_has_not_run(stand):
    stand.fault("startvm", "The virtual machine 'web01' has terminated (VERR_SVM_IN_USE)")
    with pytest.raises(HypervisorError, match="KVM has the processor's virtualization"):
        stand.driver.start(stand.spec())
    assert stand.driver.state(UUID).cause is None
    stand.driver.start(stand.spec())
    assert stand.driver.state(UUID).on


def test_machine_whose_settings_are_gone_can_be_forgotten(stand):
    """As after the move of a VM's folder to failed_to_save."""
    stand.driver.start(stand.spec())
    stand.driver.power_off(UUID)
    stand.folder.rename(stand.folder.with_name("moved"))
    for state in (stand.driver.state(UUID), stand.driver.states([UUID])[UUID]):
        assert (state.power, state.cause, state.disks) == (Power.OFF, None, {})
    assert stand.driver.snapshots(UUID) == ()
    with pytest.raises(HypervisorError, match="The object functionality is limited"):
        stand.driver.shutdown(UUID)
    stand.driver.forget(UUID)
    assert stand.driver.state(UUID) is ABSENT


def test_locked_machine_is_tried_again(stand):
    locked = "The machine 'web01' is already locked for a session (or being unlocked)"
    pending = "The machine 'web01' already has a lock request pending"
    ending = "Failed to get a console object from the direct session (VBOX_E_INVALID_OBJECT_STATE)"
    stand.driver.start(stand.spec())
    stand.driver.power_off(UUID)
    stand.fault("unregistervm", locked, pending, ending)
    stand.driver.forget(UUID)
    assert len(stand.calls("unregistervm")) == 4


def test_base_is_converted_once_and_survives_its_machines(stand):
    made = converted.path_of(stand.base)
    stand.driver.start(stand.spec())
    number = made.stat().st_ino
    stand.driver.power_off(UUID)
    stand.driver.start(stand.spec())
    stand.driver.power_off(UUID)
    stand.driver.forget(UUID)
    assert made.stat().st_ino == number
    assert len(stand.calls("registervm")) == 2
    assert not stand.calls("storageattach")


def test_base_that_is_made_again_fits_the_disks_on_it(stand):
    spec = stand.spec()
    converted.remove(stand.base)
    stand.driver.start(spec)
    flat = stand.folder / "hda.flat"
    stand.driver.flatten(chain(stand), flat, Form(format="raw", compress=False), lambda _done, _total: None)
    assert flat.read_bytes() == stand.base.read_bytes()


def chain(stand):
    return Chain(
        layers=(Layer(str(stand.folder / "hda.vdi"), "vdi"),), base=stand.base, base_format="raw", largest=1 << 40
    )


def test_interrupted_flattening_leaves_no_file(stand):
    stand.spec()

    def interrupt(_done, _total):
        raise TransferFailed("It is no longer needed.")

    for form in (Form(), Form(format="raw", compress=False)):
        with pytest.raises(TransferFailed, match="no longer"):
            stand.driver.flatten(chain(stand), stand.folder / "hda.flat.part", form, interrupt)
    assert [path.name for path in stand.folder.iterdir()] == ["hda.vdi"]


def test_disk_that_a_machine_has_open_is_not_flattened(stand, monkeypatch):
    stand.spec()
    monkeypatch.setattr(vbox_disks, "processes", lambda: iter([os.getpid()]))
    flat = stand.folder / "hda.flat.part"
    with (stand.folder / "hda.vdi").open("rb"), pytest.raises(DiskInUse, match="End that machine"):
        stand.driver.flatten(chain(stand), flat, Form(), lambda _done, _total: None)
    stand.driver.flatten(chain(stand), flat, Form(), lambda _done, _total: None)
    assert flat.exists()


def test_text_of_earlier_boots_stays_in_the_logs(stand):
    driver, report = stand.driver, stand.folder / "agent.log"
    driver.start(stand.spec())
    stand.say("agent.log", "one\n")
    driver.state(UUID)
    stand.say("agent.log", "two\n")
    driver.power_off(UUID)
    driver.start(stand.spec())
    assert report.read_text() == "one\ntwo\n"
    stand.say("agent.log", "three\n")
    stand.say("console.log", "boot 2\n")
    driver.states([UUID])
    assert report.read_text() == "one\ntwo\nthree\n"
    driver.power_off(UUID)
    driver.forget(UUID)
    assert report.read_text() == "one\ntwo\nthree\n"
    assert (stand.folder / "console.log").read_text() == "boot 2\n"


def test_saved_memory_is_resumed_or_dropped(stand):
    driver = stand.driver
    driver.start(stand.spec())
    stand.change(VMState="saved", memory="kept")
    found = driver.state(UUID)
    assert (found.cause, found.saved_memory) == (HaltCause.SAVED, True)
    driver.start(stand.spec())
    assert stand.machines[UUID]["memory"] == "kept"
    stand.change(VMState="saved")
    (stand.folder / "2026.sav").touch()
    driver.forget(UUID)
    assert stand.calls("discardstate")
    assert not (stand.folder / "2026.sav").exists()


def test_foreign_machines_are_listed_and_left_alone(stand):
    stand.driver.start(stand.spec())
    machines = stand.machines
    machines[OTHER] = {"name": "theirs", "UUID": OTHER, "VMState": "gurumeditation"}
    (stand.fake / "machines.json").write_text(json.dumps(machines))
    found = stand.driver.states([UUID])
    assert (found[OTHER].name, found[OTHER].power, found[UUID].power) == ("theirs", Power.OFF, Power.RUNNING)
    assert stand.calls("showvminfo")[-1][1] == UUID


def test_discs_go_in_and_out(stand):
    disc = stand.images / ("cd" * 32)
    disc.write_bytes(bytes(2048))
    stand.driver.start(stand.spec(cd=disc, seed=disc))

    def drives():
        return [stand.machines[UUID][f"drives-1-{place}"] for place in ("0", "1")]

    name = str(stand.folder / "vbox" / f"{disc.name}.iso")
    assert drives() == [name, str(disc)]
    assert Path(name).resolve() == disc.resolve()
    stand.driver.change_cd(UUID, None)
    for _ in range(2):
        stand.driver.eject_seed(UUID)
    assert drives() == ["emptydrive", "emptydrive"]
    stand.driver.change_cd(UUID, disc)
    assert drives() == [name, "emptydrive"]


def test_keys_travel_as_scancodes(stand):
    stand.driver.start(stand.spec())
    stand.driver.send_keys(UUID, bytes.fromhex("1c9c") * 40)
    sent = [call[3:] for call in stand.calls("controlvm")]
    assert sent == [["1c", "9c"] * 32, ["1c", "9c"] * 8]


def test_snapshots_and_networks_are_found_by_name(stand):
    stand.driver.start(stand.spec())
    assert stand.driver.snapshots(UUID) == ()
    stand.change(snapshots=["before", "after"])
    assert stand.driver.snapshots(UUID) == ("before", "after")
    assert stand.driver.snapshots(OTHER) == ()
    assert stand.driver.has_network("lab")
    assert not stand.driver.has_network("la")


@pytest.mark.parametrize("act", ["suspend", "resume", "shutdown", "screenshot", "eject_seed"])
def test_command_to_a_machine_that_is_off_or_gone_is_an_error(stand, act):
    if act != "eject_seed":
        with pytest.raises(HypervisorError, match="no machine"):
            getattr(stand.driver, act)(UUID)
    stand.driver.start(stand.spec(seed=stand.base if act == "eject_seed" else None))
    stand.driver.power_off(UUID)
    if act != "eject_seed":
        with pytest.raises(HypervisorError, match="is off"):
            getattr(stand.driver, act)(UUID)


def test_capabilities_say_what_is_missing(stand, monkeypatch, tmp_path):
    monkeypatch.setattr(vbox_driver, "DEVICE", tmp_path / "vboxdrv")
    assert "Run `modprobe vboxdrv`" in stand.driver.capabilities().problem
    (tmp_path / "vboxdrv").touch()
    found = stand.driver.capabilities()
    assert (found.problem, found.version, found.console) == ("", "7.2.22_Debianr175245", "screenshot")
    absent = Vbox(Settings(data_root=tmp_path, vboxmanage=str(tmp_path / "none")))
    assert "VirtualBox is not installed" in absent.capabilities().problem
