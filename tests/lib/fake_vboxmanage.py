#!/usr/bin/env python3
"""A VBoxManage without VirtualBox, as a program: its machines are in `$FAKE_VBOX/machines.json`.

`$FAKE_VBOX/faults.json` has what the next calls of a command print before they fail: {"startvm": ["…", "…"]}.
`$FAKE_VBOX/calls` gets each command line. Outputs are those of VirtualBox 7.2.
"""

import fcntl
import json
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from xml.etree import ElementTree as ET

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0000003010100c9fe92ef"
    "0000000049454e44ae426082"
)
SPACE = "{http://www.virtualbox.org/}"
RUN = """00:00:00.4 Console: Machine state changed to 'Starting'
00:00:01.7 Changing the VM state from 'POWERING_ON' to 'RUNNING'
00:00:01.7 Console: Machine state changed to 'Running'
"""
ENDS = {
    "poweroff": """00:00:32.3 Console: Machine state changed to 'Stopping'
00:00:32.4 Console::powerDown(): A request to power off the VM has been issued (mMachineState=Stopping, InUninit=0)
00:00:32.5 Changing the VM state from 'RUNNING' to 'POWERING_OFF'
00:00:32.7 Console: Machine state changed to 'PoweredOff'
""",
    "guest": """00:00:32.3 Changing the VM state from 'RUNNING' to 'POWERING_OFF'
00:00:32.4 Console: Machine state changed to 'Stopping'
00:00:32.5 Console::powerDown(): A request to power off the VM has been issued (mMachineState=Stopping, InUninit=0)
00:00:32.7 Console: Machine state changed to 'PoweredOff'
""",
}


def fail(text):
    """End as VBoxManage does after an error."""
    sys.exit(f"VBoxManage: error: {text}")


@contextmanager
def machines_in(home):
    """The machines, to read or to change. One process has them at a time."""
    known = home / "machines.json"
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        machines = json.loads(known.read_text()) if known.exists() else {}
        yield machines
        known.write_text(json.dumps(machines))


def find(machines, key, *, readable=True):
    """Return a machine by uuid or name, and with settings that can be read."""
    for machine in machines.values():
        if key in (machine["UUID"], machine["name"]):
            if readable and not Path(machine.get("CfgFile", "/")).exists():
                fail("The object functionality is limited\nVBoxManage: error: Details: code E_ACCESSDENIED")
            return machine
    return fail(f"Could not find a registered machine with UUID {{{key}}}")


def option(arguments, name):
    """Return the value behind an option."""
    return arguments[arguments.index(name) + 1]


def say_out(text):
    """Print a line."""
    sys.stdout.write(f"{text}\n")


def log_of(machine):
    """Return the log of a machine's last run."""
    return Path(machine["LogFldr"]) / "VBox.log"


def say(machine, text):
    """Write to the log of a machine."""
    with log_of(machine).open("a") as log:
        log.write(text)


def end(machine, how, state="poweroff"):
    """End the run of a machine."""
    say(machine, ENDS[how])
    machine["VMState"] = state


def registervm(machines, arguments):
    path = Path(arguments[0])
    found = ET.parse(path).getroot().find(f"{SPACE}Machine")
    media = {each.get("uuid"): each.get("location") for each in found.find(f"{SPACE}MediaRegistry").iter()}
    for location in filter(None, media.values()):
        if not Path(location).exists():
            fail(f"Could not find file for the medium '{location}' (VERR_FILE_NOT_FOUND)")
    uuid = found.get("uuid").strip("{}")
    if uuid in machines:
        fail(f"Registered machine with UUID {{{uuid}}} ('{path}') already exists")
    machine = {
        "name": found.get("name"),
        "UUID": uuid,
        "CfgFile": str(path),
        "LogFldr": str(path.parent / "Logs"),
        "VMState": "poweroff",
    }
    for port in found.iter(f"{SPACE}Port"):
        machine[f"uartmode{int(port.get('slot')) + 1}"] = f"file,{port.get('path')}"
    for device in found.iter(f"{SPACE}AttachedDevice"):
        image = device.find(f"{SPACE}Image")
        place = f"drives-{device.get('port')}-{device.get('device')}"
        machine[place] = "emptydrive" if image is None else media[image.get("uuid")]
    machines[uuid] = machine


def storageattach(machines, arguments):
    machine, medium = find(machines, arguments[0]), option(arguments, "--medium")
    if medium != "emptydrive" and not Path(medium).exists():
        fail(f"Could not find file for the medium '{medium}' (VERR_FILE_NOT_FOUND)")
    machine["-".join(option(arguments, f"--{each}") for each in ("storagectl", "port", "device"))] = medium


def startvm(machines, arguments):
    machine = find(machines, arguments[0])
    log_of(machine).parent.mkdir(exist_ok=True)
    log_of(machine).write_text(RUN)
    for number in ("1", "2"):
        Path(machine[f"uartmode{number}"].removeprefix("file,")).write_text("")
    machine["VMState"] = "running"


def controlvm(machines, arguments):
    machine, act = find(machines, arguments[0]), arguments[1]
    if machine["VMState"] not in ("running", "paused", "gurumeditation"):
        fail(f"Machine '{arguments[0]}' is not currently running.")
    if act == "poweroff":
        end(machine, "poweroff")
    elif act == "pause":
        if machine["VMState"] == "paused":
            fail("Already paused\nVBoxManage: error: Details: code VBOX_E_INVALID_VM_STATE (0x80bb0002)")
        machine["VMState"] = "paused"
    elif act == "resume":
        if machine["VMState"] != "paused":
            fail("Cannot resume the machine as it is not paused (machine state: Running)")
        machine["VMState"] = "running"
    elif act == "screenshotpng":
        Path(arguments[2]).write_bytes(PNG)


def discardstate(machines, arguments):
    find(machines, arguments[0])["VMState"] = "poweroff"


def unregistervm(machines, arguments):
    if "--delete" in arguments:
        fail("It would remove the base of the disks too.")
    del machines[find(machines, arguments[0], readable=False)["UUID"]]


def snapshot(machines, arguments):
    names = find(machines, arguments[0]).get("snapshots", [])
    if not names:
        say_out("This machine does not have any snapshots")  # not among the errors
        sys.exit(1)
    for number, name in enumerate(names):
        say_out(f'SnapshotName{f"-{number}" if number else ""}="{name}"')


def showvminfo(machines, arguments):
    for key, value in find(machines, arguments[0]).items():
        if isinstance(value, str):
            say_out(f'"{key}"="{value}"' if "-" in key else f'{key}="{value}"')


def closemedium(_machines, _arguments):
    """Forget a disc."""


def listed(machines, arguments):
    if arguments == ["natnets"]:
        say_out("Name:         lab\nNetwork:      10.0.9.0/24\nEnabled:      Yes")
        return
    for machine in machines.values():
        if arguments != ["runningvms"] or machine["VMState"] in ("running", "paused"):
            name = machine["name"] if Path(machine.get("CfgFile", "/")).exists() else "<inaccessible>"
            say_out(f'"{name}" {{{machine["UUID"]}}}')


COMMANDS = {
    **{each.__name__: each for each in (registervm, storageattach, startvm, controlvm)},
    **{each.__name__: each for each in (discardstate, unregistervm, snapshot, showvminfo, closemedium)},
    "list": listed,
}


def main(command, *arguments):
    """Run one command."""
    home = Path(os.environ["FAKE_VBOX"])
    broken = home / "faults.json"
    with (home / "calls").open("a") as calls:
        calls.write(json.dumps([command, *arguments]) + "\n")
    faults = json.loads(broken.read_text()) if broken.exists() else {}
    if faults.get(command):
        text = faults[command].pop(0)
        broken.write_text(json.dumps(faults))
        fail(text)
    if command == "--version":
        say_out("7.2.22_Debianr175245")
        return
    with machines_in(home) as machines:
        COMMANDS[command](machines, list(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
