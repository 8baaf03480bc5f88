"""Helpers die, find a full disk or meet a destroy beside the driver's calls: no guest is lost and none boots twice."""

import os
import signal
from contextlib import suppress

from devstack.guests import build_bootchain, read_counter
from tests.lib.faults import faults_until_met, standing, was_met
from tests.lib.support import PATIENCE_S, eventually, helpers_alive

LIFE = ("build.disk_made", "boot.before", "boot.started", "flatten.flattened", "flatten.renamed", "clean.removed")
"""The failpoints around each call of the driver, in their order."""


def is_gone(reply):
    """Return whether a VM is no longer there: not that its state is unknown for a moment."""
    return reply.get("code") == "not_found"


BOOTED = {"suspended": ("spin", {}), "ending": ("spin", {}), "gone": ("spin", {})}


def test_life_survives_a_kill_at_each_failpoint(bench, site, guest, monkeypatch, booted):
    """All in one life: each helper is killed at the next one."""

    def left(uuid):
        return [point for point in LIFE if not was_met(site, uuid, f"{point}=kill")]

    faults_until_met(monkeypatch, site, lambda record: "".join(f"{point}=kill" for point in left(record.uuid)[:1]))
    uuid = site.start("killed", guest("poweroff"))["uuid"]
    reply = site.wait("killed", "halted", "failed to start", "failed to save")
    site.until(lambda: {"left": left(uuid)}, lambda reply: not reply["left"])
    assert (reply["status"], reply["halt_cause"]) == ("halted", "guest shut down"), site.logs()
    assert read_counter(site.saved_file("killed"), "qcow2") == 1
    site.until(lambda: {"on": bench.domains()}, lambda reply: uuid not in reply["on"])
    assert not [path for path in site.leftovers() if uuid in path]


BEFORE_IT_IS_SAVED = ("build.disk_made", "boot.before", "boot.started", "flatten.flattened")


def test_destroy_in_each_phase_leaves_nothing(bench, site, guest, monkeypatch, booted):
    """While a helper stands beside a call of the driver, and while the guest is suspended or shuts down."""
    at_rest = [booted(name) for name in ("suspended", "ending")]
    points = {f"at-{point}": point for point in BEFORE_IT_IS_SAVED}
    faults_until_met(monkeypatch, site, lambda record: f"{points[record.name]}=stop" if record.name in points else "")
    for verb, uuid in zip(("suspend", "shutdown"), at_rest, strict=True):
        assert site.call(verb, uuid=uuid)["success"]
    # Each has its own image: one that waits for another's fetch gets its next helper without a fault.
    images = {name: guest("poweroff", size=number << 20) for number, name in enumerate(points, start=2)}
    held = [site.start(name, image)["uuid"] for name, image in images.items()]
    site.until(
        lambda: {"held": [uuid for uuid in held if standing(site.settings, uuid)]},
        lambda reply: len(reply["held"]) == len(held),
    )
    for uuid in held:
        assert site.call("destroy", uuid=uuid, timeout_s=0)["code"] == "timeout"
        (pid,) = standing(site.settings, uuid)
        os.kill(pid, signal.SIGCONT)
    for uuid in at_rest:
        answer = site.call("destroy", uuid=uuid, timeout_s=PATIENCE_S)
        assert answer["success"], answer
    for uuid in held:
        site.until(lambda uuid=uuid: site.call("status", uuid=uuid), is_gone)
    assert not {*held, *at_rest} & set(bench.domains())
    assert not any(bench.is_alive(uuid) for uuid in (*held, *at_rest))
    assert not [name for name in points if site.saved_file(name).exists()]
    assert not [path for path in site.leftovers() if any(uuid in path for uuid in (*held, *at_rest))]


def test_destroy_whose_helper_dies_is_finished(bench, site, monkeypatch, booted):
    uuid = booted("gone")
    faults_until_met(monkeypatch, site, lambda _: "destroy.before_remove=kill")
    site.call("destroy", uuid=uuid, timeout_s=0.3)
    site.until(lambda: site.call("status", uuid=uuid), is_gone)
    site.until(lambda: {"left": [path for path in site.leftovers() if uuid in path]}, lambda reply: not reply["left"])
    assert uuid not in bench.domains()


def test_full_disk_loses_nothing(bench):
    """The data root fills up while a guest runs: no other VM begins, and its disk is saved once there is space."""
    with bench.worker("small", images="reserve_mib = 1\n") as site:
        image = site.images / "button.raw"
        build_bootchain(image, variant="button")
        uuid = site.start("full", image)["uuid"]
        reply = site.wait("full", "running", "failed to start")
        assert reply["status"] == "running", reply
        bench.until_counted(site, uuid)
        eventually(lambda: not helpers_alive(site.settings, uuid))
        ballast = site.folder / "data/ballast"
        with suppress(OSError), ballast.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(64 << 10))
        refused = site.start("second", image)
        assert (refused["success"], refused["code"]) == (False, "disk_unavailable"), refused
        assert site.call("shutdown", uuid=uuid)["success"]
        reply = site.wait("full", "failed to save", "halted")
        assert (reply["status"], "No space left" in reply["message"]) == ("failed to save", True), reply

        ballast.unlink()
        assert site.call("save_retry", uuid=uuid)["success"]
        site.wait("full", "halted")
        assert uuid not in bench.domains()
        assert read_counter(site.saved_file("full"), "qcow2") == 1
