"""The benches by the name of their driver, and those that a test run has."""

import pkgutil
from pathlib import Path

import pytest

from tests.hypervisors.bench import Bench

BENCHES = {
    "kvm": "tests.hypervisors.bench_kvm:KvmBench",
    "fake": "tests.hypervisors.bench_fake:FakeBench",
    "vbox": "tests.hypervisors.bench_vbox:VboxBench",
    "xen": "tests.hypervisors.bench_xen:XenBench",
}
HERE = ("kvm", "fake")
"""Those that any machine has. The others run on hosts of their own."""


def chosen(config: pytest.Config) -> tuple[str, ...]:
    """Return the names of the hypervisors of this test run."""
    name = config.option.hypervisor
    return (name,) if name else HERE


def make(name: str, folder: Path) -> Bench:
    """Return the bench of a hypervisor."""
    return pkgutil.resolve_name(BENCHES[name])(folder)
