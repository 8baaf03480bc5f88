"""VirtualBox's changes are found by looks, and without a machine on the host nothing is looked at."""

import threading

from tests.lib.support import PATIENCE_S
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.vbox.events import VboxEvents, any_process


class Host:
    """The machines that are on, what was looked at, and the changes that were heard."""

    def __init__(self):
        self.on, self.looks, self.changed, self.collected = set(), 0, [], []
        self.heard = threading.Event()

    def running(self):
        self.looks += 1
        return set(self.on)

    def note(self, uuid):
        self.changed.append(uuid)
        self.heard.set()

    def events(self, **options):
        return VboxEvents(self.running, self.note, self.collected.append, lambda: bool(self.on), **options)


def test_machines_that_go_on_and_off_are_changes():
    host = Host()
    events = host.events()
    for on, changed in (({"a", "b"}, ["a", "b"]), ({"a", "b"}, []), ({"b", "c"}, ["a", "c"]), (set(), ["b", "c"])):
        host.on, host.changed = on, []
        events.look()
        assert host.changed == changed
        assert host.collected[-1] == on


def test_host_without_machines_is_not_looked_at():
    host = Host()
    events = host.events()
    events.look()
    assert host.looks == 0
    host.on = {"a"}
    events.look()
    host.on = set()
    events.look()  # the end of the last one
    events.look()
    assert (host.looks, host.changed) == (2, ["a", "a"])


def test_thread_goes_on_after_an_error():
    host = Host()
    failures = [HypervisorError("It hangs."), ValueError("not this"), None]

    def running():
        if failures and (failure := failures.pop(0)):
            raise failure
        return {"a"}

    events = VboxEvents(running, host.note, host.collected.append, lambda: True, look_s=0.001)
    assert events.ensure()
    assert not events.ensure()
    assert host.heard.wait(PATIENCE_S)
    assert host.changed == ["a"]


def test_host_without_virtualbox_has_no_process():
    assert not any_process()
