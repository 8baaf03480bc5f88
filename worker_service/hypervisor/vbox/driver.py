"""The `vbox` driver: VirtualBox by VBoxManage, as the worker's own user. Machines run headless."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.contract import Capabilities, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.core.host import User
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import ABSENT, Console, DomainSpec, DomainState, EventSource, Power
from worker_service.hypervisor.vbox import arguments, events, serial_logs, state
from worker_service.hypervisor.vbox.disks import VdiDisks
from worker_service.hypervisor.vbox.machine_xml import machine_xml
from worker_service.hypervisor.vbox.unchanged import Unchanged, stamp_of
from worker_service.hypervisor.vbox.vboxmanage import (
    DEVICE,
    INACCESSIBLE,
    LOCK_S,
    Inaccessible,
    NoSuchMachine,
    NotRunning,
    VBoxManage,
)

_BOOT_TIMES: Final = 10
"""How many times longer than another call a boot may take."""
_LOOK_S: Final = 0.25
_KEYS: Final = 64
"""Scancodes in one command. A key has at most two bytes, so none is cut."""
_NETWORK: Final = re.compile(r"^Name: +(.*)$", re.MULTILINE)
_SNAPSHOT: Final = re.compile(r'^SnapshotName[-0-9]*="(.*)"$', re.MULTILINE)
_NO_SNAPSHOTS: Final = "does not have any snapshots"
_ALREADY: Final = re.compile(r"Already paused|is not paused")
_OFFER: Final = Capabilities(
    acceleration="hardware",
    reason="VirtualBox always uses the processor's virtualization.",
    console="screenshot",
    agent_channel="serial",
    guest_agent=False,
    statistics=False,
)


class Vbox(VdiDisks):
    """Machines of VirtualBox that belong to the user of this process.

    Args:
        settings: the worker's; they name the program and its time limit.
        qemu_user: the user that qemu-img runs as.
    """

    name = "vbox"

    def __init__(self, settings: Settings, qemu_user: User | None = None) -> None:
        super().__init__(qemu_user)
        self._manage = VBoxManage(settings.vboxmanage, settings.libvirt_timeout_s)
        self._version = ""
        self._watched: dict[str, Mapping[str, str]] = {}
        self._unchanged = Unchanged()

    def capabilities(self) -> Capabilities:
        """Return what it can do. The version is read until it is known."""
        problem = ""
        try:
            self._version = self._version or self._manage.version()
            if not DEVICE.exists():
                problem = f"The kernel module of VirtualBox is missing: there is no {DEVICE}. Run `modprobe vboxdrv`, "
                problem += "after `dkms autoinstall` if there is none for this kernel."
        except HypervisorError as err:
            problem = str(err)
        return msgspec.structs.replace(_OFFER, problem=problem, version=self._version)

    def isolation(self) -> tuple[bool, str]:
        """Say what VirtualBox itself does about the network `user`."""
        return False, (
            "VirtualBox keeps guests on the network `user` from this host's loopback, and lets them reach its other "
            "addresses as the worker's user. Bind services to loopback, or use `bridge=` or `network=`."
        )

    def events(self, changed: Callable[[str], None], ended_by_host: Callable[[str], None]) -> EventSource:  # noqa: ARG002 - VirtualBox saves the memory of machines that the host ends
        """Return a thread that looks once a second while a machine is on."""
        return events.VboxEvents(self._running, changed, self._collect, traces=self._traces)

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a machine, or resume its saved memory. For one that is on, change nothing."""
        folder, known = arguments.folder_of(spec), ABSENT
        if folder.exists():  # else it was never defined here
            known = self.state(spec.uuid)
        if known.on:
            return
        if not known.saved_memory:  # that fits only the machine of its run
            if known is not ABSENT:
                self.forget(spec.uuid)
            self._define(spec, folder)
        serial_logs.collect(folder, restart=True)
        for log in (spec.console_log, spec.agent_log):
            log.touch(mode=0o600)
        try:
            self._manage.run("startvm", spec.uuid, "--type", "headless", times=_BOOT_TIMES)
        except NoSuchMachine:
            raise HypervisorError(f"The machine of {spec.name!r} was unregistered while it started.") from None

    def _define(self, spec: DomainSpec, folder: Path) -> None:
        """Make a machine. What is left of an earlier one is removed."""
        serial_logs.collect(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700)
        if spec.cd is not None:
            _name_disc(folder, spec.cd)
        settings = folder / spec.name / f"{spec.name}.vbox"
        settings.parent.mkdir(mode=0o700)
        settings.write_text(machine_xml(spec, {disk.disk_name: self.chain_of(disk) for disk in spec.disks}))
        self._manage.run("registervm", str(settings))

    def state(self, uuid: str) -> DomainState:
        """Return the state of one machine; ABSENT if it does not exist. A crashed guest is powered off."""
        return self._state(uuid)

    def _state(self, uuid: str, *, registered: bool = False) -> DomainState:
        if (known := self._unchanged.known(uuid, registered=registered)) is not None:
            _collect_logs(known.info)
            return known.state
        if self._unchanged.has_ended(uuid):
            self._await_notice(uuid)
        at = time.time()
        info = self._manage.info(uuid)
        if info is not None and info.get("VMState") == state.GURU:
            with suppress(NoSuchMachine, NotRunning):
                self._manage.run("controlvm", uuid, "poweroff")
            info = self._manage.info(uuid)
        if info is None:
            return ABSENT
        _collect_logs(info)
        found = state.of(info)
        if info["VMState"] != INACCESSIBLE:  # it has no files to see a change by
            self._unchanged.note(uuid, info, found, at)
        return found

    def _await_notice(self, uuid: str) -> None:
        """Wait until VirtualBox's daemon knows that a machine's process is gone.

        Version 7.2.22 may crash, and end all machines, if it is questioned about the machine before.
        """
        deadline = time.monotonic() + LOCK_S
        while uuid in self._manage.machines("runningvms") and time.monotonic() < deadline:
            time.sleep(_LOOK_S)

    def states(self, own: Collection[str] = ()) -> Mapping[str, DomainState]:
        """Return the state of every machine. A foreign one costs no call of its own, as one that has not changed."""
        names, on = self._manage.machines(), events.by_machine()
        self._unchanged.keep(names)
        found: dict[str, DomainState] = {}
        for uuid, name in names.items():
            if uuid not in own:
                found[uuid] = DomainState(Power.RUNNING if uuid in on else Power.OFF, name=name)
            elif (known := self._state(uuid, registered=True)) is not ABSENT:
                found[uuid] = known
        return found

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:  # noqa: ARG002 - as the interface names them
        """Return None: `state` reads the log already."""
        return None

    def suspend(self, uuid: str) -> None:
        """Pause in memory."""
        self._control(uuid, "pause")

    def resume(self, uuid: str) -> None:
        """Resume a paused machine."""
        self._control(uuid, "resume")

    def shutdown(self, uuid: str) -> None:
        """Press the ACPI power button."""
        self._control(uuid, "acpipowerbutton")

    def power_off(self, uuid: str) -> None:
        """Power off at once."""
        with suppress(NoSuchMachine, NotRunning):
            self._manage.run("controlvm", uuid, "poweroff")

    def forget(self, uuid: str) -> None:
        """Unregister a machine, without any of its media: `unregistervm --delete` would remove the base too."""
        info = self._manage.info(uuid)
        if info is None:
            return
        known = state.of(info)
        if known.on:
            raise HypervisorError(f"The machine {known.name!r} runs. It keeps its definition until it is off.")
        _collect_logs(info)
        with suppress(NoSuchMachine):
            if known.saved_memory:
                self._manage.run("discardstate", uuid)
            self._manage.run("unregistervm", uuid)
        for place in (arguments.CD, arguments.SEED):
            self._close_disc(info.get(arguments.medium_key(place), "none"))
        _remove_files(info)

    def snapshots(self, uuid: str) -> tuple[str, ...]:
        """Return the names of the snapshots of a machine."""
        try:
            return tuple(_SNAPSHOT.findall(self._manage.run("snapshot", uuid, "list", "--machinereadable")))
        except (NoSuchMachine, Inaccessible):
            return ()
        except HypervisorError as err:
            if _NO_SNAPSHOTS in str(err):
                return ()
            raise

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Change the disc in the drive of a running machine."""
        info = self._manage.info(uuid)
        folder = None if info is None else _folder_in(info)
        if info is None or folder is None:
            raise _absent(uuid)
        if path is not None:
            path = _name_disc(folder, path)
        self._on(uuid, *arguments.drive(uuid, arguments.CD, path))
        self._close_disc(info.get(arguments.medium_key(arguments.CD), "none"))

    def eject_seed(self, uuid: str) -> None:
        """Empty the drive of the seed."""
        info = self._manage.info(uuid)
        if info is None:
            raise _absent(uuid)
        present = info.get(arguments.medium_key(arguments.SEED), "none")
        if present not in arguments.NO_DISC:
            self._on(uuid, *arguments.drive(uuid, arguments.SEED, None))
            self._close_disc(present)

    def guest_agent_answers(self, uuid: str) -> bool:  # noqa: ARG002 - as the interface names them
        """Return False: VirtualBox has no port for a qemu-guest-agent."""
        return False

    def console(self, uuid: str) -> Console | None:
        """Return that the screen comes as pictures, if the machine is on."""
        return Console() if uuid in self._running() else None

    def screenshot(self, uuid: str) -> bytes:
        """Return the picture on the first screen, as PNG."""
        with tempfile.TemporaryDirectory(prefix="saltern-screen-") as folder:
            picture = Path(folder) / "screen.png"
            self._on(uuid, "controlvm", uuid, "screenshotpng", str(picture), "0")
            return picture.read_bytes()

    def send_keys(self, uuid: str, scancodes: bytes) -> None:
        """Pass scancodes on."""
        for begin in range(0, len(scancodes), _KEYS):
            codes = [f"{code:02x}" for code in scancodes[begin : begin + _KEYS]]
            self._on(uuid, "controlvm", uuid, "keyboardputscancode", *codes)

    def has_network(self, name: str) -> bool:
        """Return whether VirtualBox has a NAT network of this name."""
        return name in _NETWORK.findall(self._manage.run("list", "natnets"))

    def memory_mib(self) -> int:
        """Return the memory of the host in MiB."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20

    def cpus(self) -> int:
        """Return the number of logical processors of the host."""
        return os.cpu_count() or 1

    def _running(self) -> Collection[str]:
        """Return the uuids of the machines that are on. Without a process of one, VirtualBox need not be asked."""
        return self._manage.machines("runningvms").keys() if events.any_process() else ()

    def _collect(self, uuids: Collection[str]) -> None:
        """Append what the guests have written to their serial ports to the logs of their VMs."""
        for uuid in uuids:
            if uuid not in self._watched and (info := self._manage.info(uuid)) is not None:
                self._watched[uuid] = info
            _collect_logs(self._watched.get(uuid, {}))
        for uuid in self._watched.keys() - set(uuids):
            del self._watched[uuid]

    def _traces(self) -> object:
        """Return the processes of machines, and the stamps of those that are watched."""
        processes = events.by_machine()
        return processes, [stamp_of(processes.get(uuid), info) for uuid, info in self._watched.items()]

    def _close_disc(self, medium: str) -> None:
        """Let VirtualBox forget a disc that is in no drive any more."""
        if medium not in arguments.NO_DISC:
            with suppress(HypervisorError):
                self._manage.run("closemedium", "dvd", medium)

    def _control(self, uuid: str, act: str) -> None:
        """Run an act on a machine that is on. One that is in that state already is left as it is."""
        try:
            self._on(uuid, "controlvm", uuid, act)
        except HypervisorError as err:
            if not _ALREADY.search(str(err)):
                raise

    def _on(self, uuid: str, *command: str) -> None:
        try:
            self._manage.run(*command)
        except NoSuchMachine:
            raise _absent(uuid) from None
        except NotRunning:
            raise HypervisorError(f"The machine {uuid} is off. `status` shows its present state.") from None


def _absent(uuid: str) -> HypervisorError:
    return HypervisorError(f"VirtualBox has no machine {uuid} of this worker. `status` shows its present state.")


def _folder_in(info: Mapping[str, str]) -> Path | None:
    """Return VirtualBox's folder of a VM, if the machine has been made by this driver."""
    settings = Path(info.get("CfgFile", ""))
    folder = settings.parent.parent
    return folder if folder.name == arguments.FOLDER else None


def _name_disc(folder: Path, disc: Path) -> Path:
    """Give a disc a name in VirtualBox's folder of a VM, and return that."""
    name = arguments.disc_name(folder, disc)
    name.unlink(missing_ok=True)
    name.symlink_to(disc)
    return name


def _collect_logs(info: Mapping[str, str]) -> None:
    if folder := _folder_in(info):
        serial_logs.collect(folder)


def _remove_files(info: Mapping[str, str]) -> None:
    """Remove what a machine leaves that is gone: its settings, its log, and its memory. Disks stay."""
    if folder := _folder_in(info):
        shutil.rmtree(folder, ignore_errors=True)
        for memory in folder.parent.glob("*.sav"):
            memory.unlink(missing_ok=True)
