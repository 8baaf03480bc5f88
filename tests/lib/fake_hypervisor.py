"""A hypervisor in files: it passes the contract suite, and serves tests that need many VMs or none that is real.

It stands in for `kvm` and `vbox` on a worker with `libvirt_uri = "fake:FOLDER"`. Each domain is a JSON file below that
folder, so all processes of a worker see the same. A guest is not run but read: for a boot-sector guest the fake does
what that would do to its disk, its console and its power, and any other guest only stays up.
"""

import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest

from devstack.layout import REPO
from worker_service.contract import Capabilities, Code, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.core.host import User
from worker_service.core.settings import Settings
from worker_service.fs import atomic_files, locks
from worker_service.hypervisor import registry
from worker_service.hypervisor.base import ABSENT, Console, DiskSource, DomainSpec, DomainState, Hypervisor, Power
from worker_service.hypervisor.qcow2_disks import Qcow2Disks
from worker_service.images.overlay import Layer

SCHEME: Final = "fake:"
CAPABILITIES: Final = Capabilities(
    version="1",
    acceleration="none",
    reason="It runs no guest.",
    networks=("none", "network"),
    console="",
    seed=False,
    agent_channel="",
    guest_agent=False,
    statistics=False,
    screenshot=False,
)
_SECTOR: Final = 512
_MAGIC: Final = b"BOOTCHN1"
_POLL_S: Final = 0.02


class Domain(msgspec.Struct, kw_only=True):
    """One domain, as its file has it."""

    uuid: str
    name: str
    power: Power = Power.OFF
    cause: HaltCause | None = None
    disks: dict[str, tuple[Layer, ...]] = {}
    cd: str | None = None
    console_log: str = ""
    long_mode: bool = True
    guest: str = ""
    """The variant of a boot-sector guest."""
    ends_at: float | None = None
    """When its guest powers off by itself."""

    @property
    def on(self) -> bool:
        return self.power in (Power.RUNNING, Power.PAUSED)


@contextmanager
def installed() -> Iterator[None]:
    """Make the fake known to this process, and to all that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("kvm", "vbox"):
            patch.setitem(registry._DRIVERS, name, f"{__name__}:{name}")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(REPO / "tests/lib/fake_site"), str(REPO)]))
        yield


def kvm(settings: Settings, qemu_user: User | None = None) -> Hypervisor:
    """Return the fake for a worker of its own, and the real driver for any other."""
    from worker_service.hypervisor.kvm import Kvm

    return (Fake if settings.libvirt_uri.startswith(SCHEME) else Kvm)(settings, qemu_user)


def vbox(settings: Settings, qemu_user: User | None = None) -> Hypervisor:
    """Return the fake of another name for a worker of its own, and the real driver for any other."""
    from worker_service.hypervisor.vbox.driver import Vbox

    return (FakeVbox if settings.libvirt_uri.startswith(SCHEME) else Vbox)(settings, qemu_user)


class Fake(Qcow2Disks):
    """The driver, as the protocol `Hypervisor` describes it."""

    name = "kvm"

    def __init__(self, settings: Settings, qemu_user: User | None = None) -> None:
        super().__init__(qemu_user)
        self.folder = Path(settings.libvirt_uri.removeprefix(SCHEME)) / self.name
        self.folder.mkdir(parents=True, exist_ok=True)

    # What the host has

    def capabilities(self) -> Capabilities:
        problem = "" if self._answers else "The fake does not answer. Remove the file `down` from its folder."
        return msgspec.structs.replace(CAPABILITIES, problem=problem)

    def isolation(self) -> tuple[bool, str]:
        return True, "It has no network `user`."

    def has_network(self, name: str) -> bool:
        return name == "fakenet"

    def memory_mib(self) -> int:
        return 1 << 20

    def cpus(self) -> int:
        return 1024

    def events(self, changed: Callable[[str], None], ended_by_host: Callable[[str], None]) -> "Events":
        return Events(self, changed)

    # Domains

    def start(self, spec: DomainSpec) -> None:
        with self._changing() as domains:
            domain = domains.get(spec.uuid)
            if domain is not None and domain.on:
                return
            if any(other.name == spec.name and other.uuid != spec.uuid for other in domains.values()):
                raise HypervisorError(f"There is another domain named {spec.name!r}. Choose another name.")
            domain = Domain(
                uuid=spec.uuid,
                name=spec.name,
                power=Power.RUNNING,
                disks={disk.disk_name: _files(disk) for disk in spec.disks},
                cd=str(spec.cd) if spec.cd else None,
                console_log=str(spec.console_log),
                long_mode=spec.arch == "x86_64",
            )
            _boot(domain)
            self._write(domain)

    def state(self, uuid: str) -> DomainState:
        with self._changing() as domains:
            return _state(domains[uuid]) if uuid in domains else ABSENT

    def states(self, own: Collection[str] = ()) -> Mapping[str, DomainState]:
        with self._changing() as domains:
            return {uuid: _state(domain, disks=uuid in own) for uuid, domain in domains.items()}

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:
        return None

    def suspend(self, uuid: str) -> None:
        with self._one(uuid) as domain:
            domain.power = Power.PAUSED

    def resume(self, uuid: str) -> None:
        with self._one(uuid) as domain:
            domain.power = Power.RUNNING

    def shutdown(self, uuid: str) -> None:
        with self._one(uuid) as domain:
            if domain.guest == "button":
                _end_itself(domain)

    def power_off(self, uuid: str) -> None:
        self._end(uuid, HaltCause.KILLED)

    def crash(self, uuid: str) -> None:
        """End a domain as if its process had died."""
        self._end(uuid, HaltCause.CRASHED)

    def _end(self, uuid: str, cause: HaltCause) -> None:
        with self._changing() as domains:
            domain = domains.get(uuid)
            if domain is not None and domain.on:
                domain.power, domain.cause = Power.OFF, cause
                self._write(domain)

    def forget(self, uuid: str) -> None:
        with self._changing() as domains:
            if uuid in domains and domains[uuid].on:
                raise HypervisorError(f"The domain {domains[uuid].name!r} runs. It stays until it is off.")
            self._file(uuid).unlink(missing_ok=True)

    def snapshots(self, uuid: str) -> tuple[str, ...]:
        return ()

    def change_cd(self, uuid: str, path: Path | None) -> None:
        with self._one(uuid) as domain:
            domain.cd = str(path) if path else None

    def eject_seed(self, uuid: str) -> None:
        with self._one(uuid):
            pass  # it has none

    def guest_agent_answers(self, uuid: str) -> bool:
        return False

    def console(self, uuid: str) -> Console | None:
        return None

    def screenshot(self, uuid: str) -> bytes:
        raise HypervisorError("The fake has no pictures. Read console.log instead.")

    # What tests do to it

    def define(self, domain: Domain) -> None:
        """Add a domain that no worker has made."""
        with self._changing():
            self._write(domain)

    def domains(self) -> dict[str, Domain]:
        """Return all domains, also while the toolstack is down."""
        with self._locked():
            return self._settled()

    def stop_toolstack(self) -> None:
        """Let each call fail. Guests run on."""
        (self.folder / "down").touch()

    def start_toolstack(self) -> None:
        (self.folder / "down").unlink(missing_ok=True)

    def lose_power(self) -> None:
        """End all guests without a cause, as a power cut does."""
        with self._locked():
            for domain in self._settled().values():
                domain.power, domain.cause = Power.OFF, None
                self._write(domain)

    # Files

    def _file(self, uuid: str) -> Path:
        return self.folder / f"{uuid}.json"

    def _write(self, domain: Domain) -> None:
        atomic_files.write(self._file(domain.uuid), msgspec.json.encode(domain))

    @property
    def _answers(self) -> bool:
        return not (self.folder / "down").exists()

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Domain]]:
        if not self._answers:
            raise HypervisorError("The fake does not answer; its running VMs keep running. Remove its file `down`.")
        with self._locked():
            yield self._settled()

    @contextmanager
    def _one(self, uuid: str) -> Iterator[Domain]:
        """A domain that is on; it is written at the end."""
        with self._changing() as domains:
            domain = domains.get(uuid)
            if domain is None or not domain.on:
                raise HypervisorError(
                    f"The fake has no domain {uuid} that is on. `status` shows its state.", code=Code.CONFLICT
                )
            yield domain
            self._write(domain)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with locks.locked(self.folder / "lock"):
            yield

    def _settled(self) -> dict[str, Domain]:
        """Return all domains after the guests have done what was due."""
        found = {}
        for file in self.folder.glob("*.json"):
            domain = msgspec.json.decode(file.read_bytes(), type=Domain)
            if domain.power is Power.RUNNING and domain.ends_at is not None and domain.ends_at <= time.time():
                _end_itself(domain)
                self._write(domain)
            found[domain.uuid] = domain
        return found


class FakeVbox(Fake):
    """A second one beside it, for workers with several."""

    name = "vbox"


class Events:
    """Tells of changed files."""

    def __init__(self, fake: Fake, changed: Callable[[str], None]) -> None:
        self._fake = fake
        self._changed = changed
        self._thread: threading.Thread | None = None

    def ensure(self) -> bool:
        if self._thread is not None:
            return False
        known = self._observed()
        self._thread = threading.Thread(target=self._watch, args=[known], daemon=True)
        self._thread.start()
        return True

    def _observed(self) -> dict[str, Power]:
        return {uuid: domain.power for uuid, domain in self._fake.domains().items()}

    def _watch(self, known: dict[str, Power]) -> None:
        while True:
            time.sleep(_POLL_S)
            with suppress(OSError):
                found = self._observed()
                for uuid in found.keys() | known.keys():
                    if found.get(uuid) is not known.get(uuid):
                        self._changed(uuid)
                known = found


def _state(domain: Domain, *, disks: bool = True) -> DomainState:
    return DomainState(domain.power, cause=domain.cause, name=domain.name, disks=domain.disks if disks else {})


def _files(disk: DiskSource) -> tuple[Layer, ...]:
    """Return all files of a disk, from the one that the guest writes to."""
    return (*disk.layers, *([Layer(str(disk.base), disk.base_format)] if disk.base else []))


def _say(domain: Domain, words: str) -> None:
    with Path(domain.console_log).open("a") as log:
        log.write(f"{words}\r\n")


def _end_itself(domain: Domain) -> None:
    _say(domain, "off")
    domain.power, domain.cause, domain.ends_at = Power.OFF, HaltCause.GUEST, None


def _boot(domain: Domain) -> None:
    """Do what the guest on the first disk would do, or else the one on the CD, which installs another."""
    disk = domain.disks["hda"][0]
    head = _read(disk)
    if not head.endswith(b"\x55\xaa", 0, _SECTOR) and domain.cd:
        disc = Path(domain.cd).read_bytes()
        at = next((at for at in range(_SECTOR, len(disc), _SECTOR) if disc.startswith(_MAGIC, at)), 0)
        head = disc[at - _SECTOR : at + _SECTOR] if at else head
        _write(disk, 0, head)
    if not head[_SECTOR:].startswith(_MAGIC):
        return
    record = bytearray(head[_SECTOR:])
    counter, seconds = (int.from_bytes(record[at : at + 4], "little") for at in (8, 12))
    record[8:12] = (counter + 1).to_bytes(4, "little")
    record[16:20] = (1 + domain.long_mode).to_bytes(4, "little")
    domain.guest = bytes(record[20:32]).rstrip(b"\0").decode()
    _write(disk, _SECTOR, bytes(record))
    _say(domain, f"BootChain\r\nboot {(counter + 1) % 10}")
    if domain.guest == "crash":
        domain.power, domain.cause = Power.OFF, HaltCause.CRASHED
    elif domain.guest == "poweroff" and not seconds:
        _end_itself(domain)
    elif domain.guest == "poweroff":
        domain.ends_at = time.time() + seconds


def _read(disk: Layer) -> bytes:
    """Return the first two sectors of a disk."""
    with tempfile.NamedTemporaryFile(prefix="saltern-fake-") as copy:
        _run(
            "qemu-img",
            "dd",
            "-U",
            "-f",
            disk.format,
            "-O",
            "raw",
            "bs=512",
            "count=2",
            f"if={disk.path}",
            f"of={copy.name}",
        )
        return Path(copy.name).read_bytes().ljust(2 * _SECTOR, b"\0")


def _write(disk: Layer, at: int, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(prefix="saltern-fake-") as source:
        source.write(content)
        source.flush()
        _run("qemu-io", "-f", disk.format, "-c", f"write -s {source.name} {at} {len(content)}", disk.path)


def _run(*argv: str) -> None:
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode:
        raise HypervisorError(f"The fake cannot reach a disk: {done.stderr.strip()}. Look at that file.")
