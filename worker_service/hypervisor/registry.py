"""The drivers by name. Each is imported at its first use: refused requests and long downloads do without libvirt."""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from typing import Final, cast

from worker_service.core.host import User
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import Hypervisor

_Make = Callable[[Settings, User | None], Hypervisor]

_DRIVERS: Final = {
    "kvm": "worker_service.hypervisor.kvm:Kvm",
    "xen": "worker_service.hypervisor.xen.driver:Xen",
    "vbox": "worker_service.hypervisor.vbox.driver:Vbox",
}


def driver_class(name: str) -> _Make:
    """Return the class of a hypervisor's driver.

    It gets the settings, and the user that QEMU and qemu-img run as, if this process may act for that.
    """
    return cast(_Make, pkgutil.resolve_name(_DRIVERS[name]))
