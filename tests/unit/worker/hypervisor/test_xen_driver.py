"""The xen driver's calls of libvirt, with a libvirt that is simulated."""

from pathlib import Path

import libvirt
import pytest

from tests.unit.worker.hypervisor.test_xen_xml import spec
from worker_service.contract import HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import ABSENT, Power
from worker_service.hypervisor.xen import driver as driver_module
from worker_service.hypervisor.xen import messages
from worker_service.hypervisor.xen.driver import Xen

UUID = spec().uuid
RUNNING, OFF = [libvirt.VIR_DOMAIN_RUNNING, 1], [libvirt.VIR_DOMAIN_SHUTOFF, 0]
CRASHED = [libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_CRASHED]
CAPABILITIES = (
    "<capabilities><guest><os_type>hvm</os_type><arch name='x86_64'/></guest>"
    "<guest><os_type>xenpvh</os_type><arch name='x86_64'/></guest></capabilities>"
)


def error(code, text="internal error: it failed", domain=libvirt.VIR_FROM_LIBXL):
    err = libvirt.libvirtError(text)
    err.err = (code, domain, text, 2, "", "", "", 0, 0)
    return err


def failing(err):
    def fail(*_arguments, **_keywords):
        raise err

    return fail


class Domain:
    """A domain of the simulated libvirt. It writes down what it is told."""

    def __init__(self, name="web01", uuid=UUID, number=-1, *, ours=True, fails=None, xml="<domain/>", then=None):
        self.called, self.number, self.fails, self.ours, self.xml = [], number, fails or {}, ours, xml
        self.name, self.UUIDString = lambda: name, lambda: uuid
        self.off, self.then = OFF, then

    def _note(self, *call):
        self.called.append(call)
        pending = self.fails.get(call[0])
        if pending:
            raise pending.pop(0)

    def ID(self):  # noqa: N802 - libvirt's
        return self.number

    def isActive(self):  # noqa: N802
        return self.number != -1

    def state(self):
        return RUNNING if self.isActive() else self.off

    def XMLDesc(self):  # noqa: N802
        return self.xml

    def hasManagedSaveImage(self):  # noqa: N802
        return 0

    def maxMemory(self):  # noqa: N802
        return 512 << 10

    def metadata(self, _kind, _uri):
        if not self.ours:
            raise error(libvirt.VIR_ERR_NO_DOMAIN_METADATA)
        return "<vm/>"

    def create(self):
        self._note("create")
        self.number = 7
        if self.then:
            self.number, self.off = -1, self.then

    def destroy(self):
        self._note("destroy")
        self.number = -1

    def undefineFlags(self, flags):  # noqa: N802
        self._note("undefine", flags)

    def updateDeviceFlags(self, xml, flags):  # noqa: N802
        self._note("update", "source" in xml, flags)

    def detachDeviceFlags(self, xml, flags):  # noqa: N802
        self._note("detach", "/d/seed.iso" in xml, flags)

    def shutdownFlags(self, flags):  # noqa: N802
        self._note("shutdown", flags)

    @property
    def names(self):
        return [name for name, *_more in self.called]


class Connection:
    """The simulated libvirt."""

    def __init__(self, *domains):
        self.domains = {domain.UUIDString(): domain for domain in domains}
        self.define = None
        self.isAlive, self.getLibVersion, self.getVersion = lambda: 1, lambda: 9_000_000, lambda: 4_017_000
        self.getCapabilities, self.getInfo = lambda: CAPABILITIES, lambda: ["x86_64", 2047, 4, 0, 1, 1, 4, 1]
        self.getFreeMemory, self.listAllDomains = lambda: 1384 << 20, lambda: list(self.domains.values())

    def lookupByUUIDString(self, uuid):  # noqa: N802
        if uuid not in self.domains:
            raise error(libvirt.VIR_ERR_NO_DOMAIN)
        return self.domains[uuid]

    def defineXMLFlags(self, _xml, _flags):  # noqa: N802
        self.domains[self.define.UUIDString()] = self.define
        return self.define


@pytest.fixture
def made(monkeypatch, tmp_path):
    """A driver on simulated domains; one of them may be that which it defines."""
    monkeypatch.setattr(driver_module, "_LOOK_S", 0.0)
    monkeypatch.setattr(driver_module, "_FIRST_S", 0.0)
    monkeypatch.setattr(driver_module.state, "qemu_is_dead", lambda number: number == 66)

    def make(*domains, define=None, **settings):
        connection = Connection(*domains)
        connection.define = define
        monkeypatch.setattr(libvirt, "open", lambda _uri: connection)
        return Xen(Settings(data_root=tmp_path, **settings))

    return make


def given(folder):
    return spec(console_socket=folder / "screen/vnc")


def test_domain_0_is_not_listed(made):
    zero = Domain("Domain-0", "00000000-0000-0000-0000-000000000000", 0)
    driver = made(zero, Domain(number=3), Domain("theirs", "f", 4, ours=False))
    assert {uuid: state.name for uuid, state in driver.states([UUID]).items()} == {UUID: "web01", "f": "theirs"}
    assert driver.memory_mib() == 1384 + 512  # dom0's and foreign memory is not for guests
    assert driver.cpus() == 4


def test_start_makes_the_disc_that_stands_for_none(made, tmp_path):
    domain = Domain()
    made(define=domain).start(given(tmp_path))
    assert domain.names == ["create"]
    assert (tmp_path / "empty.iso").read_bytes()[32769:32774] == b"CD001"
    assert (tmp_path / "screen").stat().st_mode & 0o777 == 0o700


def test_domain_that_is_on_is_not_started_twice(made, tmp_path):
    domain = Domain(number=3)
    made(domain).start(given(tmp_path))
    assert domain.called == []


def test_remains_of_a_dead_qemu_make_way(made, tmp_path):
    domain = Domain(number=66)
    made(domain, define=domain).start(given(tmp_path))
    assert domain.names == ["destroy", "create"]


def test_memory_of_dom0_is_not_taken(made, tmp_path):
    domain = Domain()
    driver = made(define=domain)
    driver.connect().getFreeMemory = lambda: 1000 << 20
    with pytest.raises(HypervisorError, match="needs 1024 MiB of memory, and Xen has 1000 MiB free"):
        driver.start(given(tmp_path))
    assert domain.called == []


def test_failed_create_is_explained(made, tmp_path, monkeypatch):
    monkeypatch.setattr(messages, "failed_create", lambda name, text: f"{name}: {text}")
    fails = {"create": [error(libvirt.VIR_ERR_INTERNAL_ERROR)]}
    with pytest.raises(HypervisorError, match="web01: internal error: it failed"):
        made(define=Domain(fails=fails)).start(given(tmp_path))
    fails = {"create": [error(libvirt.VIR_ERR_OPERATION_INVALID, "already running")]}
    with pytest.raises(HypervisorError, match="libvirt refused: already running"):
        made(define=Domain(fails=fails)).start(given(tmp_path))


@pytest.mark.parametrize(
    ("end", "fails"), [(CRASHED, True), ([OFF[0], libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED], False), (None, False)]
)
def test_guest_without_firmware_has_to_survive(made, tmp_path, monkeypatch, end, fails):
    monkeypatch.setattr(driver_module, "_FIRST_S", 0.05)
    monkeypatch.setattr(messages, "console_end", lambda _name: "Kernel panic")
    domain = Domain(then=end)
    (tmp_path / "grub-i386-xen_pvh.bin").touch()
    driver = made(define=domain, xen_guest="pvh", xen_grub_folder=tmp_path)
    if not fails:
        driver.start(given(tmp_path))
        return
    with pytest.raises(HypervisorError, match=r"crashed 0 s after its start.*Kernel panic") as failed:
        driver.start(given(tmp_path))
    assert not failed.value.retry
    assert domain.names == ["create", "undefine"]


def test_missing_grub_is_named_before_a_start(made, tmp_path):
    driver = made(define=Domain(), xen_guest="pvh", xen_grub_folder=tmp_path)
    assert "Debian: grub-xen-host" in driver.capabilities().problem
    with pytest.raises(HypervisorError, match="is missing"):
        driver.start(given(tmp_path))


def test_state_of_each_kind_of_end(made):
    assert made().state(UUID) == ABSENT
    dead = made(Domain(number=66)).state(UUID)
    assert (dead.power, dead.cause) == (Power.OFF, HaltCause.CRASHED)
    broken = Domain()
    broken.state = failing(error(libvirt.VIR_ERR_INTERNAL_ERROR))
    with pytest.raises(HypervisorError):
        made(broken).state(UUID)


def test_definition_of_a_running_domain_stays(made):
    domain = Domain(number=3)
    with pytest.raises(HypervisorError, match="keeps its definition"):
        made(domain).forget(UUID)
    assert domain.called == []
    domain.number = 66
    made(domain).forget(UUID)
    assert domain.names == ["destroy", "undefine"]
    made().forget(UUID)


@pytest.mark.parametrize(("number", "names"), [(3, ["destroy"]), (-1, [])])
def test_power_off_ends_what_is_on(made, number, names):
    domain = Domain(number=number)
    made(domain).power_off(UUID)
    assert domain.names == names


def test_disc_is_changed_live_and_replaced_for_later(made):
    domain = Domain(number=3, fails={"update": [error(libvirt.VIR_ERR_INTERNAL_ERROR)]})
    driver = made(domain)
    driver.change_cd(UUID, None)
    live, config = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
    assert domain.called == [("update", False, live), ("update", False, live), ("update", True, config)]


@pytest.mark.parametrize("has_seed", [True, False])
def test_seed_is_detached_once(made, has_seed):
    disk = "<disk><source file='/d/seed.iso'/><target dev='xvde'/></disk>" if has_seed else ""
    domain = Domain(number=3, xml=f"<domain><devices>{disk}</devices></domain>")
    made(domain).eject_seed(UUID)
    assert domain.called == ([("detach", True, 3)] if has_seed else [])


def test_power_button_is_that_of_the_kind(made, monkeypatch):
    domain, commands = Domain(number=3), []
    made(domain).shutdown(UUID)
    assert domain.called == [("shutdown", libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)]
    monkeypatch.setattr(driver_module.subprocess, "run", lambda argv, **_more: commands.append(argv))
    made(domain, xen_guest="pvh").shutdown(UUID)
    assert commands == [["xenstore-write", "/local/domain/3/control/shutdown", "poweroff"]]
    domain.number = -1
    for kind in ("hvm", "pvh"):
        made(domain, xen_guest=kind).shutdown(UUID)
    assert (len(domain.called), len(commands)) == (1, 1)


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        (FileNotFoundError(), "xenstore-utils"),
        (driver_module.subprocess.CalledProcessError(1, "x", stderr="denied\n"), "failed: denied"),
        (driver_module.subprocess.TimeoutExpired("x", 1), "xenstored has not answered"),
    ],
)
def test_xenstore_that_fails_is_named(made, monkeypatch, failure, says):
    monkeypatch.setattr(driver_module.subprocess, "run", failing(failure))
    with pytest.raises(HypervisorError, match=says):
        made(Domain(number=3), xen_guest="pvh").shutdown(UUID)


@pytest.mark.parametrize("number", [3, -1, None])
def test_screen_is_the_socket_of_a_running_domain(made, number):
    xen = "http://libvirt.org/schemas/domain/xen/1.0"
    argument = "<xen:commandline><xen:arg value='unix:/d/vnc,share=ignore'/></xen:commandline>"
    xml = f"<domain xmlns:xen='{xen}'>{argument}</domain>"
    driver = made(*([] if number is None else [Domain(number=number, xml=xml)]))
    found = driver.console(UUID)
    assert (found.socket if found else None) == (Path("/d/vnc") if number == 3 else None)
    assert made(Domain(number=3)).console(UUID) is None


def test_capabilities_say_what_is_wrong(made, monkeypatch):
    can = made().capabilities()
    assert (can.problem, can.acceleration, can.arches, can.version) == ("", "hvm", ("x86_64",), "4.17.0, libvirt 9.0.0")
    assert "offers no pv guests" in made(xen_guest="pv").capabilities().problem
    driver = made()
    text = "internal error: libxenlight state driver is not active"
    monkeypatch.setattr(libvirt, "open", failing(error(libvirt.VIR_ERR_INTERNAL_ERROR, text)))
    assert "does not run on Xen" in driver.capabilities().problem
    away = error(libvirt.VIR_ERR_SYSTEM_ERROR, "Failed to connect socket", libvirt.VIR_FROM_RPC)
    monkeypatch.setattr(libvirt, "open", failing(away))
    assert "Start libvirtd" in driver.capabilities().problem


def test_calls_without_a_counterpart(made):
    driver = made(Domain(number=3))
    assert driver.snapshots(UUID) == ()
    assert driver.logged_end(UUID, "web01") is None
    assert not driver.guest_agent_answers(UUID)
    assert driver.isolation()[0]
    with pytest.raises(HypervisorError, match="no screenshots"):
        driver.screenshot(UUID)


def test_screen_whose_path_is_too_long_lies_elsewhere(made, tmp_path, monkeypatch):
    monkeypatch.setattr(driver_module, "_SCREENS", tmp_path / "run")
    made(define=Domain()).start(spec(console_socket=None))
    assert (tmp_path / "run" / UUID).is_dir()
