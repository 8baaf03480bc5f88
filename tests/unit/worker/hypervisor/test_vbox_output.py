"""What VBoxManage prints becomes pairs, and its errors become sentences with advice."""

import pytest

from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.vbox import vboxmanage
from worker_service.hypervisor.vbox.vboxmanage import VBoxManage, parse, said

USED = """VBoxManage: error: VT-x is being used by another hypervisor (VERR_VMX_IN_VMX_ROOT_MODE).
VBoxManage: error: Details: code NS_ERROR_FAILURE (0x80004005), component MachineWrap
"""
USED_SAID = (
    "VT-x is being used by another hypervisor (VERR_VMX_IN_VMX_ROOT_MODE). KVM has the processor's virtualization: "
    "boot with kvm.enable_virt_at_load=0, or unload kvm."
)
MISSING = "VBoxManage: error: Kernel driver not installed (VERR_VM_DRIVER_NOT_INSTALLED)\n"
MISSING_SAID = (
    "Kernel driver not installed (VERR_VM_DRIVER_NOT_INSTALLED). The kernel module vboxdrv is not loaded: run "
    "`modprobe vboxdrv`."
)


@pytest.mark.parametrize(
    ("output", "pairs"),
    [
        ('name="web01"\ncpus=2\n', {"name": "web01", "cpus": "2"}),
        ('"drives-0-0"="/u/hda.vdi"\n"drives-1-0"="none"\n', {"drives-0-0": "/u/hda.vdi", "drives-1-0": "none"}),
        ('description="a\nb, cpus=9"\nVMState="running"\n', {"description": "a\nb, cpus=9", "VMState": "running"}),
        ('name="a \\"b\\" \\\\"\n', {"name": 'a "b" \\'}),
        ('uartmode1="file,/vms/u=1/vbox/console.log"\n', {"uartmode1": "file,/vms/u=1/vbox/console.log"}),
        (' rec_screen0\nVideoMode="720,400,0"@0,0 1\n\n', {"VideoMode": '"720,400,0"@0,0 1'}),
        ("", {}),
    ],
)  # fmt: skip
def test_machinereadable_output_is_parsed(output, pairs):
    assert parse(output) == pairs


@pytest.mark.parametrize(
    ("errors", "sentence"),
    [(USED, USED_SAID), (MISSING, MISSING_SAID), ("Waiting for VM to power on...\n", "it gave no reason.")],
)
def test_errors_become_sentences(errors, sentence):
    assert said(errors) == sentence


def program(folder, text):
    path = folder / "VBoxManage"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return VBoxManage(str(path), limit_s=30)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 6.1.50r161033", "VirtualBox 6.1.50r161033 is too old. Install 7.0 or later"),
        ("echo hello", "states no version"),
        ("echo 'VBoxManage: error: no' >&2; exit 1", "VBoxManage --version failed: no"),
        ("echo 'There are none'; exit 1", "VBoxManage --version failed: There are none"),
    ],
)
def test_version_that_is_of_no_use_is_an_error(tmp_path, script, words):
    with pytest.raises(HypervisorError, match=words):
        program(tmp_path, script).version()


def test_version_is_read_below_a_warning(tmp_path):
    script = "echo 'WARNING: The vboxdrv kernel module is not loaded.'; echo 7.2.22_Debianr175245"
    assert program(tmp_path, script).version() == "7.2.22_Debianr175245"


def test_missing_program_is_an_error_with_advice(tmp_path):
    with pytest.raises(HypervisorError, match=r"not installed.*Install the package virtualbox"):
        VBoxManage(str(tmp_path / "VBoxManage")).version()


def test_program_without_the_right_to_run_is_an_error(tmp_path):
    (tmp_path / "VBoxManage").mkdir()
    with pytest.raises(HypervisorError, match="may not be run by the worker's user"):
        VBoxManage(str(tmp_path / "VBoxManage")).version()


def test_hanging_program_is_ended_with_an_error(tmp_path):
    manage = program(tmp_path, "exec sleep 3600")
    manage._limit_s = 0.1
    with pytest.raises(HypervisorError, match=r"has not ended for 0\.1 s"):
        manage.run("list", "vms")


def test_locked_machine_is_tried_until_it_is_free(tmp_path):
    marker = tmp_path / "tried"
    script = f"""
if [ -e {marker} ]; then echo done; exit 0; fi
touch {marker}
echo "VBoxManage: error: The machine 'v1' is already locked for a session (or being unlocked)" >&2; exit 1"""
    assert program(tmp_path, script).run("unregistervm", "v1") == "done\n"


def test_program_itself_comes_before_its_script_in_path(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    program(tmp_path / "bin", "echo 'the script'; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setattr(vboxmanage, "PROGRAMS", tmp_path)
    with pytest.raises(HypervisorError, match="the script"):
        VBoxManage("VBoxManage").version()
    program(tmp_path, "echo 7.2.22r1")
    assert VBoxManage("VBoxManage").version() == "7.2.22r1"
