"""The messages of `plan`: what a start would do on a worker, without starting; and what a worker cannot do at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from worker_service.contract.capacity import Capabilities
from worker_service.contract.messages import Code, Spec
from worker_service.contract.patterns import OWNER
from worker_service.contract.uri_secrets import mask_fields, masked_uri

WhileOn = Literal["suspend", "cd_image", "screen"]
"""What users do to a running VM that not each hypervisor can: pause it, change its CD, open its console."""

_INSTEAD: Final[dict[WhileOn, str]] = {
    "suspend": "cannot pause a VM in memory. Shut it down instead",
    "cd_image": "cannot change the CD of a running VM. Shut it down, change it, and start the VM again",
    "screen": "shows no screen of this VM. Its console.log has the output of its serial port",
}

PLAN_FEATURE: Final = "plan"
"""The worker's `plan` reads `uuid` and `owner` (`Capacity.features`). Versions up to 0.2 would refuse them."""

_UUID: Final = r"\A[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z"


def describe_ends(spec: Spec) -> str:
    """Return one sentence on what becomes of the disks of a VM when it halts.

    If one disk has no `*_save_to`, all of them stay on the worker.
    """
    targets = {"hda": (spec.hda_image, spec.hda_save_to), "hdb": (spec.hdb_image, spec.hdb_save_to)}
    ends = {disk: masked_uri(target) if target else target for disk, (image, target) in targets.items() if image}
    stay = None in ends.values()
    ways = {
        disk: " and ".join([*([f"saved to {target}"] if target else []), *(["kept on its worker"] if stay else [])])
        or "discarded"
        for disk, target in ends.items()
    }
    if len(set(ways.values())) == 1:
        return f"Its disk{'s' * (len(ways) > 1)} will be {ways['hda']} when it halts."
    return f"When it halts, {' and '.join(f'{disk} will be {way}' for disk, way in ways.items())}."


def network_kind(network: str) -> str:
    """Return the kind of a network: `user`, `none`, `network` or `bridge` of a valid one."""
    return network.partition("=")[0]


def unsupported(spec: Spec, hypervisors: Mapping[str, Capabilities]) -> str:
    """Return why a worker with these hypervisors cannot run a VM, and what to use instead; empty if it can.

    A hypervisor that does not work now counts as one that works: it may be back when the VM starts.
    """
    has = hypervisors.get(spec.hypervisor)
    if has is None:
        return f"has no {spec.hypervisor} driver (it has {', '.join(hypervisors) or 'none'})"
    for lack, instead in _lacks(spec, has).items():
        able = [name for name, other in hypervisors.items() if not _lacks(spec, other)]
        another = f", or hypervisor {' or '.join(able)}" if able else ""
        return f"offers {lack} on {spec.hypervisor}: {instead}{another}"
    return ""


def _lacks(spec: Spec, has: Capabilities) -> dict[str, str]:
    """Return what a VM needs and does not get, as a phrase that begins with `no`, with the parameter to change."""
    kind = network_kind(spec.network)
    needed = {
        f"no {spec.sys_arch} guests": (spec.sys_arch in has.arches, f"use {' or '.join(has.arches)}"),
        f"no network {kind!r}": (kind in has.networks, f"use {' or '.join(has.networks)}"),
        "no CD drive": (has.cd or not spec.cd_image, "leave out cd_image"),
        "no seed, which an agent and cloud-init need,": (
            has.seed or not spec.wants_seed,
            "leave out soft_list, run_agent, hostname, ssh_keys, user_data and minion_master",
        ),
    }
    return {lack: instead for lack, (is_there, instead) in needed.items() if not is_there}


def unsupported_while_on(what: WhileOn, hypervisor: str, has: Capabilities) -> str:
    """Return why that cannot be done to a running VM, and what to do instead; empty if it can."""
    able = {"suspend": has.suspend, "cd_image": has.cd_change, "screen": bool(has.console)}
    return "" if able[what] else f"{hypervisor} {_INSTEAD[what]}"


class PlanRequest(Spec, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The parameters of `plan` as a master sends them: those of `start`, the VM, its owner and its origin."""

    uuid: Annotated[str, msgspec.Meta(pattern=_UUID)]
    owner: Annotated[str, msgspec.Meta(pattern=rf"\A(?:{OWNER.pattern})?\Z")] = ""
    origin: dict[str, str] = msgspec.field(default_factory=dict)
    """As in `StartAction`."""


class ImagePlan(msgspec.Struct, frozen=True, kw_only=True):
    """The plan for one image. `size` is in bytes, or None if the source does not say."""

    disk: str
    uri: str
    cached: bool
    size: int | None = None

    def __post_init__(self) -> None:
        """Mask secrets in the URI."""
        mask_fields(self, "uri")


class PlanReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to `plan`. Without `success` or without `fits`, `code` and the message say why it would be refused.

    A worker up to 0.2 gives no code without `fits`.
    """

    success: bool
    message: str = ""
    code: Code | None = None
    fits: bool = False
    bytes_to_fetch: int = 0
    images: tuple[ImagePlan, ...] = ()
    exists: str | None = None
    """The uuid of the VM if it is on the worker already."""
