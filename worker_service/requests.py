"""What comes through a door, made into checked values. Doors pass plain data: query strings, JSON, YAML."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from worker_service.contract import NAME, NAME_PATTERN, Action, Code, Spec
from worker_service.errors import BadRequest, Refused
from worker_service.hypervisor.kvm_xml import parse_network
from worker_service.images.schemes import check_source, check_target
from worker_service.images.uri import blank_size, parse
from worker_service.settings import Images

_LISTS: Final = ("soft_list",)
_MIN_MIB: Final = 16
_MAX_MIB: Final = 64 << 20


def spec(parameters: Mapping[str, Any], policy: Images) -> Spec:
    """The checked parameters of a `start`; raises BadRequest or Refused that names the parameter.

    The contract leaves it to the master whether they make sense together; types, names and the site's policy are
    the worker's own safety, whoever calls.
    """
    given = {key: _plain(key, value) for key, value in parameters.items() if value is not None}
    try:
        # strict=False: "2" is as good as 2, since a query string knows only strings.
        made = msgspec.convert(given, Spec, strict=False)
    except msgspec.ValidationError as err:
        raise BadRequest(f"The parameters are not right: {err}. The contract lists them.") from err
    if not NAME.fullmatch(made.name):
        raise BadRequest(f"The name {made.name[:80]!r} is not allowed. It must match {NAME_PATTERN}.")
    if made.cpu_count < 1:
        raise BadRequest(f"cpu_count={made.cpu_count} is not allowed. Give 1 or more.")
    if not _MIN_MIB <= made.mem_size <= _MAX_MIB:
        raise BadRequest(f"mem_size={made.mem_size} is not allowed. Give MiB, {_MIN_MIB} or more.")
    parse_network(made.network)
    for parameter in ("hda_image", "hdb_image", "cd_image"):
        check_image(getattr(made, parameter), policy)
    for parameter in ("hda_save_to", "hdb_save_to"):
        check_save_to(getattr(made, parameter), policy)
    return made


def check_image(uri: str | None, policy: Images) -> None:
    """Refuse an image URI that could never be fetched here."""
    if uri and blank_size(uri) is None:
        check_source(parse(uri), policy)


def check_save_to(uri: str | None, policy: Images) -> None:
    """Refuse a URI that nothing could ever be saved to from here."""
    if uri:
        check_target(parse(uri), policy)


def identity(uuid: object, name: object) -> tuple[str | None, str | None]:
    """Which VM is meant: the uuid where both are given; raises BadRequest where neither is."""
    if uuid:
        return canonical_uuid(uuid), None
    if name:
        return None, str(name)
    raise BadRequest("Which VM? Give uuid or name.")


def canonical_uuid(value: object) -> str:
    """A uuid as libvirt writes it; raises BadRequest."""
    try:
        return str(uuidlib.UUID(str(value)))
    except ValueError:
        raise BadRequest(f"{str(value)[:80]!r} is no uuid. `vmachines.list` shows the uuids.") from None


def generation(value: object) -> int | None:
    """A generation, or None where the caller has none (a person at the Salt command line)."""
    if value is None or value == "":
        return None
    try:
        number = msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        number = 0
    if number < 1:
        raise BadRequest(f"generation={value!r} is not allowed. Give a whole number, 1 or more.")
    return number


def actions(value: object) -> Sequence[Action]:
    """The commands of an `apply`; raises BadRequest."""
    try:
        return msgspec.convert(value, list[Action])
    except msgspec.ValidationError as err:
        raise BadRequest(f"The actions are not right: {err}. See worker_service.contract.Action.") from err


def flag(value: object) -> bool:
    """A truth value as people and query strings write it; raises BadRequest."""
    try:
        return msgspec.convert(value.lower() if isinstance(value, str) else value, bool, strict=False)
    except msgspec.ValidationError:
        raise BadRequest(f"{value!r} is neither true nor false.") from None


def seconds(value: object) -> float:
    """A time limit in seconds; raises BadRequest."""
    try:
        number = msgspec.convert(value, float, strict=False)
    except msgspec.ValidationError:
        number = -1.0
    if not 0 <= number <= 3600:
        raise BadRequest(f"timeout_s={value!r} is not allowed. Give seconds, 0 to 3600.")
    return number


def refuse_agent(wanted: Spec) -> None:
    """The agent is not part of this version; a VM that waits for it would never be ready."""
    if wanted.wants_agent:
        raise Refused(
            "soft_list and run_agent need the agent, which this version does not have. Leave them out.",
            code=Code.UNSUPPORTED,
        )


def _plain(key: str, value: object) -> object:
    """YAML makes numbers and truth values of words, and a list may come as `a,b`: turn them back."""
    if key in _LISTS:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if isinstance(value, str):
        return value.strip().lower() if key == "run_agent" else value
    return str(value) if key == "name" and isinstance(value, int) else value
