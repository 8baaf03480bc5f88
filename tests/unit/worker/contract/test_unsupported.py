"""What a worker's hypervisors cannot do, and the sentence that says what to use instead."""

import pytest

from worker_service.contract import Capabilities, Spec, network_kind, unsupported, unsupported_while_on

ALL = Capabilities()
NO_SEED = "leave out soft_list, run_agent, hostname, ssh_keys, user_data and minion_master"
FEW = Capabilities(arches=("x86_64",), networks=("none", "bridge"), cd=False, seed=False)


def spec(**fields):
    return Spec(name="a", hda_image="file:///a", **fields)


@pytest.mark.parametrize(
    ("fields", "hypervisors", "expected"),
    [
        ({}, {"kvm": ALL}, ""),
        ({"cd_image": "file:///c", "soft_list": ("a",), "sys_arch": "i386"}, {"kvm": ALL}, ""),
        ({"network": "none"}, {"kvm": FEW}, ""),
        ({"hypervisor": "xen"}, {"kvm": ALL, "vbox": ALL}, "has no xen driver (it has kvm, vbox)"),
        ({"hypervisor": "xen"}, {}, "has no xen driver (it has none)"),
        ({}, {"kvm": FEW}, "offers no network 'user' on kvm: use none or bridge"),
        (
            {"network": "network=lan"},
            {"kvm": FEW, "xen": ALL},
            "offers no network 'network' on kvm: use none or bridge, or hypervisor xen",
        ),
        ({"network": "none", "sys_arch": "i386"}, {"kvm": FEW}, "offers no i386 guests on kvm: use x86_64"),
        (
            {"network": "none", "cd_image": "file:///c"},
            {"kvm": FEW, "xen": ALL, "vbox": ALL},
            "offers no CD drive on kvm: leave out cd_image, or hypervisor xen or vbox",
        ),
        (
            {"network": "bridge=br0", "hostname": "a"},
            {"kvm": FEW},
            f"offers no seed, which an agent and cloud-init need, on kvm: {NO_SEED}",
        ),
        ({}, {"kvm": Capabilities(problem="libvirtd is away")}, ""),
    ],
)
def test_says_what_to_use_instead(fields, hypervisors, expected):
    assert unsupported(spec(**fields), hypervisors) == expected


def test_kind_of_a_network():
    kinds = ["user", "none", "network", "bridge"]
    assert [network_kind(each) for each in ("user", "none", "network=a=b", "bridge=b")] == kinds


NOTHING = Capabilities(suspend=False, cd_change=False, console="")


@pytest.mark.parametrize("what", ["suspend", "cd_image", "screen"])
def test_commands_to_a_running_vm(what):
    assert unsupported_while_on(what, "kvm", ALL) == ""
    refusal = unsupported_while_on(what, "xen", NOTHING)
    assert refusal.startswith("xen ")
    assert ". " in refusal  # what to do instead
