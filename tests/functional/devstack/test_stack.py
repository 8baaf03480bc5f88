"""A stack of trivial parts: start, stop, and the messages when a part fails."""

import socket
import sys

import pytest

from devstack.console import Trouble
from devstack.layout import Layout, Ports
from devstack.stack import Part, Stack


def listener(port):
    code = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(600)"
    return (sys.executable, "-c", code)


def healthy_when_it_listens(port):
    def check(_):
        with socket.socket() as client:
            return "" if client.connect_ex(("127.0.0.1", port)) == 0 else "nobody listens"

    return check


@pytest.fixture
def layout(tmp_path):
    return Layout(var=tmp_path, ports=Ports.free())


@pytest.fixture
def idlers(layout):
    """One part on a port, and one that needs none."""
    port = layout.ports.worker
    parts = (
        Part("door", listener(port), healthy_when_it_listens(port), (port,)),
        Part("idler", ("sleep", "600"), lambda _: ""),
    )
    stack = Stack(layout, parts=parts)
    yield stack
    stack.stop()


def test_stack_starts_and_stops(idlers):
    assert idlers.start() == ["door", "idler"]
    assert {name: state for name, state, _ in idlers.status()} == {"door": "running", "idler": "running"}
    assert sorted(idlers.stop()) == ["door", "idler"]
    assert {name: state for name, state, _ in idlers.status()} == {"door": "stopped", "idler": "stopped"}


def test_starting_again_changes_nothing(idlers):
    idlers.start()
    before = {name: idlers.running(name) for name in idlers.parts}
    assert idlers.start() == []
    assert {name: idlers.running(name) for name in idlers.parts} == before


def test_stack_of_another_process_is_found_and_stopped(idlers, layout):
    idlers.start()
    other = Stack(layout, parts=idlers.parts.values())
    assert sorted(other.stop()) == ["door", "idler"]


def test_killed_part_starts_again_alone(idlers):
    idlers.start()
    idler = idlers.running("idler")
    assert idlers.kill("door")
    assert idlers.running("door") is None
    idlers.start_part("door")
    assert idlers.running("door")
    assert idlers.running("idler") == idler


def test_part_that_ends_names_its_log(layout):
    stack = Stack(layout, parts=[Part("broken", ("sh", "-c", "echo because; exit 1"), lambda _: "not yet")])
    with pytest.raises(Trouble, match=rf"broken ended while it was starting: read the end of {layout.log('broken')}"):
        stack.start()
    assert layout.log("broken").read_text() == "because\n"


def test_missing_program_error_says_what_to_do(layout):
    stack = Stack(layout, parts=[Part("absent", ("/no/such/program",), lambda _: "not yet")])
    with pytest.raises(Trouble, match="run `make run`"):
        stack.start()


def test_taken_port_is_named_and_left_alone(idlers, layout):
    with socket.create_server(("127.0.0.1", layout.ports.worker)):
        with pytest.raises(Trouble, match=f"Port {layout.ports.worker}, which door needs"):
            idlers.start()
        assert idlers.running("door") is None


def test_taken_port_is_found_before_anything_is_started(layout):
    port = layout.ports.worker
    early = Part("early", ("sleep", "600"), lambda _: "", wave=0)
    stack = Stack(layout, parts=[early, Part("door", listener(port), healthy_when_it_listens(port), (port,))])
    with socket.create_server(("127.0.0.1", port)), pytest.raises(Trouble, match=f"Port {port}"):
        stack.start()
    assert stack.running("early") is None


def test_part_that_is_awaited_later_starts_before_the_others(layout):
    slow = Part("slow", ("sleep", "600"), lambda _: "" if stack.running("other") else "no other", wave=0, awaited=2)
    other = Part("other", ("sleep", "600"), lambda _: "" if stack.running("slow") else "slow has not started")
    stack = Stack(layout, parts=[other, slow])
    try:
        assert stack.start() == ["slow", "other"]
    finally:
        stack.stop()


def test_running_shared_part_is_used_and_never_stopped(layout):
    shared = Part("shared", ("false",), lambda _: "", shared=True)
    stack = Stack(layout, parts=[shared, Part("idler", ("sleep", "600"), lambda _: "")])
    assert stack.start() == ["idler"]
    assert stack.status()[0][2] == "not started by this stack, and not stopped by it"
    assert stack.stop() == ["idler"]


def test_files_and_logs_of_a_part_are_for_their_owner_only(layout):
    made = layout.var / "made"
    part = Part(
        "maker", ("sh", "-c", f"echo log; : >{made}; exec sleep 600"), lambda _: "" if made.exists() else "none"
    )
    stack = Stack(layout, parts=[part])
    try:
        stack.start()
        assert {path.stat().st_mode & 0o777 for path in (made, layout.log("maker"))} == {0o600}
    finally:
        stack.stop()
