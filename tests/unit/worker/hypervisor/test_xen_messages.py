"""What libvirt, libxl and QEMU say in dom0, as sentences with what to do."""

import pytest

from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.xen import kinds, messages

LIBXL = (
    "2026-11-30 17:54:33.603+0000: libxl: libxl_qmp.c:1399:qmp_ev_fd_callback: Domain 1:error on QMP socket\n"
    "2026-11-30 17:54:33.668+0000: libxl: libxl_create.c:1896:domcreate: Domain 1:{}\n"
)
QEMU = "char device redirected to /dev/pts/1 (label console)\nxen-qemu-system-i386: -vnc unix:x: no such folder\n"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("internal error: libxenlight state driver is not active", "does not run on Xen"),
        ("no connection driver available for xen:///system", "libvirt-daemon-driver-xen"),
        ("Failed to initialize libxenlight context", "does not run on Xen"),
        ("domain is already running", ""),
    ],
)
def test_message_about_the_host(text, says):
    said = messages.of_libvirt(text)
    assert says in said
    assert bool(said) is bool(says)


@pytest.mark.parametrize(
    ("xen", "libvirt", "says"),
    [
        (4_017_000, 9_000_000, ""),
        (4_011_004, 9_000_000, "Xen 4.11 (needed: 4.14)"),
        (4_011_004, 6_000_000, "Xen 4.11 (needed: 4.14), libvirt 6.0 (needed: 6.7)"),
    ],
)
def test_old_versions_are_named(xen, libvirt, says):
    said = messages.of_versions(xen, libvirt)
    assert says in said
    assert bool(said) is bool(says)


@pytest.mark.parametrize(
    ("libxl", "qemu", "text", "says"),
    [
        (
            "device model did not start: -26",
            QEMU,
            "libxenlight failed",
            "could not start 'a': -vnc unix:x: no such fol",
        ),
        ("device model did not start: -26", None, "libxenlight failed", "could not start 'a': device model did not st"),
        (None, None, "libxenlight failed", "could not start 'a': libxenlight failed. See"),
        (None, "xen-qemu-system-i386: terminating on signal 1\n", "it failed", "could not start 'a': it failed. See"),
        (
            "script: Could not find bridge device br9",
            None,
            "it failed",
            "could not start 'a': script: Could not find b",
        ),
    ],
)
def test_failed_create_has_its_reason(tmp_path, libxl, qemu, text, says):
    log = tmp_path / "libxl-driver.log"
    if libxl:
        log.write_text(LIBXL.format(libxl))
    if qemu:
        (tmp_path / "qemu-dm-a.log").write_text(qemu)
    assert says in messages.failed_create("a", text, log, tmp_path)


def test_reason_comes_before_its_consequences(tmp_path):
    log = tmp_path / "libxl-driver.log"
    log.write_text(
        LIBXL.format("no kernel at /g/grub.bin") + LIBXL.format("cannot (re-)build domain: -3").split("\n", 1)[1]
    )
    assert messages.failed_create("a", "", log, tmp_path).startswith(
        "Xen could not start 'a': no kernel at /g/grub.bin."
    )


def test_memory_that_is_too_little_is_named():
    assert "'a' needs 4096 MiB of memory, and Xen has 1383 MiB free" in messages.too_little_memory("a", 4096, 1383)


def test_console_of_a_guest_that_crashed_is_quoted(tmp_path):
    (tmp_path / "console").mkdir()
    log = tmp_path / "console" / "guest-a.log"
    assert messages.console_end("a", tmp_path) == ""
    log.write_bytes(b"".join(b"line %d\r\n" % n for n in range(9)) + b"\x1b[30m\x00Kernel panic\xff\r\n\r\n")
    end = messages.console_end("a", tmp_path)
    assert end == "line 4 / line 5 / line 6 / line 7 / line 8 / Kernel panic"
    assert messages.died("a", 7.2, end).endswith(f"or another image. Its console ended with: {end}")
    assert messages.died("a", 7.2, "").endswith("or another image.")


GUEST = "<guest><os_type>{}</os_type><arch name='{}'/></guest>"
ALL = [("xen", "x86_64"), ("hvm", "i686"), ("xenpvh", "i686"), ("hvm", "x86_64"), ("xenpvh", "x86_64"), ("exe", "arm")]
BOTH = ("x86_64", "i386")


def offered(*guests):
    return kinds.kinds_in(f"<capabilities>{''.join(GUEST.format(*each) for each in guests)}</capabilities>")


def test_kinds_and_arches_of_a_host():
    assert offered(*ALL, ("hvm", "i686")) == {"hvm": BOTH, "pvh": BOTH, "pv": ("x86_64",)}
    assert kinds.kinds_in("<capabilities><guest><os_type>hvm</os_type></guest></capabilities>") == {}


@pytest.mark.parametrize(
    ("setting", "guests", "kind", "why"),
    [
        ("auto", ALL, "hvm", "Xen offers it"),
        ("auto", ALL[:1], "pv", "no HVM"),
        ("pvh", ALL, "pvh", "xen_guest in the worker's settings"),
    ],
)
def test_kind_follows_the_setting_and_the_host(setting, guests, kind, why):
    found, arches, reason = kinds.chosen(setting, offered(*guests))
    assert (found, arches) == (kind, offered(*guests)[kind])
    assert why in reason


@pytest.mark.parametrize(
    ("setting", "guests", "says"),
    [("auto", [], "no kind of guest"), ("hvm", ALL[:1], "It offers pv: set"), ("pv", [], "It offers none: set")],
)
def test_kind_that_the_host_lacks_is_refused(setting, guests, says):
    with pytest.raises(HypervisorError, match=says):
        kinds.chosen(setting, offered(*guests))


@pytest.mark.parametrize("guest", ["hvm", "pvh", "pv"])
def test_no_kind_offers_the_network_user(guest):
    assert kinds.OFFERS[guest].networks == ("none", "network", "bridge")
