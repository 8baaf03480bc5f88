"""VirtualBox's changes are found by looks, and without a machine on the host nothing is looked at."""

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

from tests.lib.support import PATIENCE_S, eventually
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.vbox import events
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
    watching = host.events()
    for on, changed in (({"a", "b"}, ["a", "b"]), ({"a", "b"}, []), ({"b", "c"}, ["a", "c"]), (set(), ["b", "c"])):
        host.on, host.changed = on, []
        watching.look()
        assert host.changed == changed
        assert host.collected[-1] == on


def test_host_without_machines_is_not_looked_at():
    host = Host()
    watching = host.events()
    watching.look()
    assert host.looks == 0
    host.on = {"a"}
    watching.look()
    host.on = set()
    watching.look()  # the end of the last one
    watching.look()
    assert (host.looks, host.changed) == (2, ["a", "a"])


def test_machines_without_a_trace_of_change_are_not_looked_at(monkeypatch):
    now, traces, host = [1000.0], ["one"], Host()
    monkeypatch.setattr(events, "time", SimpleNamespace(monotonic=lambda: now[0]))
    watching = host.events(traces=lambda: traces[0])
    host.on = {"a"}
    for passed_s, trace, looks in (
        (0, "one", 1),
        (4, "one", 2),
        (2, "one", 2),
        (9, "two", 3),
        (5, "two", 4),
        (1, "two", 4),
    ):
        now[0], traces[0] = now[0] + passed_s, trace
        watching.look()
        assert host.looks == looks
        assert host.collected[-1] == {"a"}


def test_thread_goes_on_after_an_error():
    host = Host()
    failures = [HypervisorError("It hangs."), ValueError("not this"), None]

    def running():
        if not failures:
            threading.Event().wait()  # the thread lives as long as this process, and must not look for ever
        if failure := failures.pop(0):
            raise failure
        return {"a"}

    watching = VboxEvents(running, host.note, host.collected.append, lambda: True, look_s=0.001)
    assert watching.ensure()
    assert not watching.ensure()
    assert host.heard.wait(PATIENCE_S)
    assert host.changed == ["a"]


def test_end_of_a_process_is_heard_at_once(monkeypatch):
    uuid = "aaaaaaaa-0000-4000-8000-000000000001"
    command = [sys.executable, "-c", "input()", "--startvm", uuid, "--start-running"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as guest, subprocess.Popen(["sleep", "60"]) as other:
        monkeypatch.setattr(events, "processes", lambda: iter([guest.pid, other.pid, 2**22 + 1]))
        ends = events.Ends()
        # A process that has just begun its program has no command line yet.
        eventually(lambda: uuid.encode() in Path(f"/proc/{guest.pid}/cmdline").read_bytes())
        assert events.by_machine() == {uuid: guest.pid}
        for _ in range(2):
            ends.watch()
        assert ends.wait(0.01) == []
        guest.stdin.close()
        assert ends.wait(PATIENCE_S) == [uuid]
        assert ends.wait(0.01) == []
        other.kill()


def test_host_without_virtualbox_has_no_process():
    assert not any_process()
