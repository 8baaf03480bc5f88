"""The requests that the gate accepts, and what it sends to salt-api for them. Pure.

Everything that a request to salt-api can say beyond this (`ret`, `ret_kwargs`, `jid`, `module_executors`, other
clients, other targets) has no field here, and a request with an unknown field is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final, TypeVar

import msgspec

from worker_service.contract import PlanRequest

FUNCTIONS: Final[Mapping[str, frozenset[str]]] = {
    "vmachines.apply": frozenset({"actions"}),
    "vmachines.list": frozenset(),
    "vmachines.screen": frozenset({"uuid", "ticket_sha256", "user", "admin", "view_only", "disk"}),
    "vmachines.cache": frozenset(),
    "vmachines.cache_clean": frozenset({"preview"}),
    "vmachines.cache_prefetch": frozenset({"uri", "pin", "cancel"}),
    "vmachines.cache_pin": frozenset({"uri"}),
    "vmachines.cache_unpin": frozenset({"uri"}),
    "vmachines.plan": frozenset(PlanRequest.__struct_fields__),
    "vmachines.version": frozenset(),
}
"""function -> its parameters"""

_TYPES: Final[Mapping[str, type[msgspec.Struct]]] = {"vmachines.plan": PlanRequest}
"""Functions whose parameters have types of their own."""

WORKER: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}"
"""The ids of minions that can be workers. They cannot be read as a glob, a list or an option."""

NONCE: Final = r"[0-9a-f]{32}"
_Worker = Annotated[str, msgspec.Meta(pattern=rf"\A{WORKER}\Z")]
_Workers = Annotated[list[_Worker], msgspec.Meta(min_length=1, max_length=10_000)]
_Nonce = Annotated[str, msgspec.Meta(pattern=rf"\A{NONCE}\Z")]
_TimeLimit = Annotated[float, msgspec.Meta(gt=0, le=600)]


class Publish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Start a job on these workers, and do not wait for it. `nonce` marks its returns in the event stream."""

    workers: _Workers
    fun: str
    kwarg: dict[str, Any]
    nonce: _Nonce

    def lowstate(self) -> dict[str, Any]:
        """Return the request to salt-api."""
        return {"client": "local_async", **_job(self)}


class Call(Publish, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Call a function on these workers and wait for their answers. After `timeout_s` Salt asks the slow ones."""

    timeout_s: _TimeLimit

    def lowstate(self) -> dict[str, Any]:
        """Return the request to salt-api. Salt silently uses its own `timeout` in place of a float."""
        return {"client": "local", **_job(self), "timeout": math.ceil(self.timeout_s)}


_Shape = TypeVar("_Shape", bound=Publish)


def decode(body: bytes, shape: type[_Shape]) -> _Shape:
    """Return a checked request. Raises ValueError that says what is wrong with it."""
    try:
        made = msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, RecursionError) as err:
        raise ValueError(str(err)) from err
    parameters = FUNCTIONS.get(made.fun)
    if parameters is None:
        raise ValueError(f"{made.fun[:80]!r} is none of {', '.join(FUNCTIONS)}")
    if unknown := sorted(made.kwarg.keys() - parameters):
        raise ValueError(f"{made.fun} has no parameter {unknown[0][:80]!r}")
    if made.fun in _TYPES:
        try:
            msgspec.convert(made.kwarg, _TYPES[made.fun])
        except msgspec.ValidationError as err:
            raise ValueError(f"{made.fun}: {err}") from err
    return made


def _job(request: Publish) -> dict[str, Any]:
    return {
        "tgt": request.workers,
        "tgt_type": "list",
        "fun": request.fun,
        "kwarg": request.kwarg,
        "metadata": {"nonce": request.nonce},
    }
