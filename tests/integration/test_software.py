"""Software in a guest, requested at the master and installed by the agent, through the real Salt and back."""

import time

import pytest

from devstack.guests import build_demo, read_demo_package
from devstack.guests.build import CACHE
from tests.lib.console import Console

VMS = "/api/v1/vmachines"
LONG = 600
"""Seconds. On an idle machine the guest is up after three; emulated on a very busy one it takes minutes."""


@pytest.fixture(scope="module")
def demo(stack):
    image = stack.layout.images / "with-agent.qcow2"
    build_demo(image, CACHE)
    return image


def create(stack, name, demo, **more):
    body = {"name": name, "hda_image": f"file://{demo}", "mem_size": 160, **more}
    reply = stack.api("POST", VMS, body)
    assert reply.status == 201, reply.body


def follow(stack, name, *ends):
    """The master's answers about a VM until it has one of these statuses, without repetitions."""
    observed = []
    deadline = time.monotonic() + LONG
    while not observed or observed[-1]["status"] not in ends:
        assert time.monotonic() < deadline, observed[-1:]
        observed.append(stack.api("GET", f"{VMS}/{name}").body)
        time.sleep(0.1)
    return observed


def until_shown(stack, name, words):
    """The master's answer about a VM once it contains this text."""
    deadline = time.monotonic() + LONG
    while words not in (observed := stack.api("GET", f"{VMS}/{name}").body)["message"]:
        assert time.monotonic() < deadline, observed
        time.sleep(0.1)
    return observed


def test_software_list_is_installed_before_it_runs(stack, demo):
    saved = stack.layout.saved / "soft.qcow2"
    create(stack, "soft", demo, soft_list=["hello", "held"], hda_save_to=f"file://{saved}")
    half = until_shown(stack, "soft", "Installing 2 of 2: held.")
    assert (half["status"], half["assumed"]) == ("installing", "installing")
    Console("soft", stack.layout.data_root / "vms" / half["uuid"] / "console.log").go_on(within_s=LONG)
    observed = follow(stack, "soft", "running", "failed")
    assert observed[-1]["status"] == "running", observed[-1]
    assert [(entry["name"], entry["version"]) for entry in observed[-1]["software"]] == [
        ("hello", "2.10-r0"),
        ("held", "1.0-r0"),
    ]
    installing = [view for view in observed if view["status"] == "installing"]
    assert {view["assumed"] for view in installing} == {"installing"}
    assert stack.api("POST", f"{VMS}/soft/shutdown").ok
    follow(stack, "soft", "halted")
    assert read_demo_package(saved, "qcow2", "held") == "1.0-r0"


def test_unknown_package_fails_with_the_reason(stack, demo):
    create(stack, "no-such", demo, soft_list=["no-such-thing"])
    failed = follow(stack, "no-such", "running", "failed")[-1]
    assert failed["status"] == "failed"
    assert "no-such-thing (no such package)" in failed["message"]
    assert failed["software"][0]["state"] == "failed"
    assert stack.api("DELETE", f"{VMS}/no-such").ok


def test_list_that_could_be_a_command_is_refused(stack, demo):
    body = {"name": "refused", "hda_image": f"file://{demo}", "mem_size": 160, "soft_list": ["--purge"]}
    reply = stack.api("POST", VMS, body)
    assert reply.status == 400
    assert "no name of a package" in str(reply.body)
