"""Regression: a restarted libvirtd loses a client's connection, and the reason why a domain ended."""

from devstack.guests import read_counter
from tests.lib.support import eventually


def test_first_question_to_a_new_libvirtd_is_answered(machine, bootchain):
    """A connection that the other end has closed looks alive until it is used: the API answered 503 once."""
    site = machine.site
    uuid = site.start("asked", bootchain("asked.raw", folder=site.images, variant="spin"))["uuid"]
    site.wait("asked", "running")
    machine.stop_libvirtd("kill")
    machine.start()
    assert site.call("status", uuid=uuid)["status"] == "running"
    site.call("destroy", uuid=uuid)


def test_guest_off_before_libvirtd_restart_keeps_its_cause(machine, bootchain):
    """No process recorded it in between, so its cause was unknown, and its disk was kept instead of saved."""
    site = machine.site
    site.start("forgotten", bootchain("forgotten.raw", folder=site.images, variant="key"))
    site.wait("forgotten", "running")
    site.end("forgotten")
    eventually(lambda: "shut off" in machine.host.virsh("domstate", "forgotten"))
    machine.stop_libvirtd("term")
    machine.start()
    reply = site.wait("forgotten", "halted")
    assert (reply["halt_cause"], "saved_to" in reply["disks"]["hda"]) == ("guest shut down", True)
    assert read_counter(site.saved_file("forgotten"), "qcow2") == 1
