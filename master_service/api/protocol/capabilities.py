"""The view of what the hypervisors of a worker can do."""

from __future__ import annotations

import msgspec
from pydantic import BaseModel, Field

from master_service.planning.vm import Worker


class DriverView(BaseModel):
    """What one hypervisor of a worker can do."""

    problem: str = Field(description="why it does not work now, and what to do; empty: it works")
    version: str
    acceleration: str = Field(description="how guests run: `kvm`, `tcg` (emulation), `hvm`, `pvh`, `pv`, `vt-x`, …")
    reason: str = Field(description="why they run that way")
    arches: list[str]
    networks: list[str] = Field(description="the kinds of `network`: user, none, network, bridge")
    firmware: list[str]
    console: str = Field(description="vnc; screenshot: pictures and keys, without a pointer; empty: no screen")
    cd: bool = Field(description="whether a VM may start with a CD")
    cd_change: bool = Field(description="whether the CD of a VM that is on can be changed")
    seed: bool = Field(description="whether a guest gets a seed, for soft_list, run_agent and cloud-init's parameters")
    agent_channel: str = Field(description="the way of the agent's report out of the guest")
    guest_agent: bool = Field(description="whether a qemu-guest-agent in the guest can answer")
    suspend: bool = Field(description="whether a VM can be paused in memory")
    statistics: bool
    screenshot: bool
    console_log: bool = Field(description="whether the output of the guest's serial port is in console.log")


def driver_views(worker: Worker) -> dict[str, DriverView]:
    """Return the tables of a worker, by hypervisor."""
    found = worker.capacity.drivers if worker.capacity else {}
    return {name: DriverView(**msgspec.structs.asdict(driver)) for name, driver in found.items()}
