"""Validation: turn the plain data of the interfaces (query strings, JSON, YAML) into checked values.

Unknown fields are refused, because their sender expects an effect that this version does not have.
"""

from __future__ import annotations

import inspect
import json
import uuid as uuidlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, cast

import msgspec

from worker_service import __version__
from worker_service.contract import (
    GUEST_LISTS,
    GUEST_PARAMETERS,
    KEEP,
    MODIFIABLE,
    NAME,
    NAME_PATTERN,
    OWNER,
    Action,
    Changes,
    Code,
    Spec,
    guest_entries,
    is_guest_entry,
    is_like_uuid,
)
from worker_service.contract.uri_secrets import masked_uri
from worker_service.contract.words import refusal, refusal_of_any, refusal_of_name
from worker_service.core.errors import BadRequest, Refused
from worker_service.core.settings import OwnerPolicy
from worker_service.hypervisor.base import parse_network
from worker_service.state.record import DISKS
from worker_service.transfer.registry import check_source, check_target, look_at_target
from worker_service.transfer.uri import blank_size, parse

NEWER: Final = (
    f"This worker has Saltern {__version__}, and changed nothing. Correct the request, or upgrade the worker if its "
    "sender is newer."
)
"""Advice about a command that this version does not know."""

_MIN_MIB: Final = 16
_MAX_MIB: Final = 64 << 20


def spec(parameters: Mapping[str, Any], policy: OwnerPolicy) -> Spec:
    """Return the checked parameters of a `start`; raises BadRequest or Refused that names the parameter."""
    return checked_spec(parse_spec(parameters), policy)


def parse_spec(parameters: Mapping[str, Any]) -> Spec:
    """Return the parameters of a `start` with their types, not checked yet. Raises BadRequest."""
    given = _plain(parameters)
    check_known(given, Spec)
    try:
        # strict=False: a query string has only strings, so "2" counts as 2.
        return msgspec.convert(given, Spec, strict=False)
    except msgspec.ValidationError as err:
        text = refusal_of_any(given) or f"The parameters are not right: {err}. The contract lists them."
        raise BadRequest(text) from err


def checked_spec(made: Spec, policy: OwnerPolicy) -> Spec:
    """Return a spec with allowed values, `KEEP` as None; raises BadRequest or Refused that names the parameter.

    The worker checks names, sizes and the site's policy for every caller. The master checks whether the parameters
    make sense together.
    """
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
    _check_guest(made, policy)
    kept = {f"{disk}_save_to": None for disk in DISKS if getattr(made, f"{disk}_save_to") == KEEP}
    return msgspec.structs.replace(made, **kept)


def _check_guest(made: Spec, policy: OwnerPolicy) -> None:
    for parameter, (_, most, wrong) in GUEST_PARAMETERS.items():
        value = getattr(made, parameter) or ()
        entries = value if isinstance(value, tuple) else (value,)
        if len(entries) > most or len(set(entries)) < len(entries):
            raise BadRequest(f"{parameter} has {len(entries)} entries. Give {most} at most, and each once.")
        for entry in entries:
            if not is_guest_entry(parameter, entry):
                raise BadRequest(f"{entry[:40]!r} in {parameter} {wrong}.")
    if made.user_data:
        if made.user_data.lstrip().startswith(("#", "{")) or "\n" in made.user_data:
            raise BadRequest(
                "user_data is the URI of a cloud-config document, not the document: requests are shown to everybody "
                "who sees the VM. Store the document beside the images and give its URI."
            )
        check_source(parse(made.user_data), policy)


def check_new_name(name: str) -> None:
    """Raise BadRequest if a new VM cannot have this name: it is like the uuid of another one, or no word in YAML."""
    if is_like_uuid(name):
        raise BadRequest(f"The name {name!r} is like a uuid, and would be taken for one. Choose another name.")
    if why := refusal_of_name(name):
        raise BadRequest(why)


def word(parameter: str, value: object) -> str:
    """Return a parameter that must be a text. Raises BadRequest that says how to write it."""
    if why := refusal(parameter, value):
        raise BadRequest(why)
    return cast(str, value)


def optional_word(parameter: str, value: object) -> str:
    """Return a text, or "" if it is not given. Raises BadRequest for other values."""
    return "" if value is None else word(parameter, value)


def changes(parameters: Mapping[str, Any], policy: OwnerPolicy) -> Changes:
    """Return the checked parameters of a `modify`; raises BadRequest or Refused."""
    given = {key: value for key, value in parameters.items() if value is not None}
    if unknown := sorted(given.keys() - set(MODIFIABLE)):
        allowed = f"{', '.join(MODIFIABLE[:-1])} and {MODIFIABLE[-1]}"
        raise BadRequest(f"{', '.join(unknown)} cannot be modified. Only {allowed} can.")
    return checked_changes(Changes(**{key: word(key, value) for key, value in given.items()}), policy)


def checked_changes(made: Changes, policy: OwnerPolicy) -> Changes:
    """Return changes that this worker can carry out; raises BadRequest or Refused."""
    check_image(made.cd_image, policy)
    for uri in (made.hda_save_to, made.hdb_save_to):
        check_save_to(uri, policy)
    return made


def check_image(uri: str | None, policy: OwnerPolicy) -> None:
    """Refuse an image URI that this worker cannot fetch, and a blank disk above the size limit."""
    if not uri:
        return
    if (size := blank_size(uri)) is None:
        check_source(parse(uri), policy)
    elif size > policy.max_virtual_gib << 30:
        raise Refused(
            f"{uri} is larger than the limit for disks ({policy.max_virtual_gib} GiB). "
            "Use a smaller disk, or raise images.max_virtual_gib in the worker's settings.",
            code=Code.POLICY,
        )


def origin(value: object, made: Spec, policy: OwnerPolicy) -> dict[str, str]:
    """Return the saves from which disks start instead of from their images; raises BadRequest or Refused."""
    given = decode_json(value, "origin") if isinstance(value, str) and value else value or {}
    try:
        found = msgspec.convert(given, dict[str, str])
    except msgspec.ValidationError as err:
        raise BadRequest(f"origin is not right: {err}. Give a mapping of disks to URI#sha256=DIGEST.") from err
    for disk, uri in found.items():
        if disk not in DISKS or not getattr(made, f"{disk}_image"):
            raise BadRequest(f"origin names {disk[:80]!r}, and the VM has no such disk. Leave it out.")
        if blank_size(uri) is not None or not parse(uri).sha256:
            raise BadRequest(f"origin names {masked_uri(uri)[:80]!r} without a digest. Write URI#sha256=DIGEST.")
        check_source(parse(uri), policy)
    return found


def check_save_to(uri: str | None, policy: OwnerPolicy) -> None:
    """Refuse a URI to which this worker cannot save, and a place here that is a folder or a link."""
    if uri and uri != KEEP:
        parsed = parse(uri)
        check_target(parsed, policy)
        look_at_target(parsed, policy)


def identity(uuid: object, name: object) -> tuple[str | None, str | None]:
    """Return the uuid or the name of a VM; the uuid wins. Raises BadRequest for a malformed one, and without any."""
    if uuid not in (None, ""):
        return canonical_uuid(uuid), None
    if name in (None, ""):
        raise BadRequest("The request names no VM. Give uuid or name.")
    text = word("name", name)
    if not NAME.fullmatch(text):  # names are looked up as files: other text may be a path
        raise BadRequest(f"{text[:80]!r} is not a valid name. `vmachines.list` shows the names.")
    return None, text


def owner(value: str) -> str:
    """Return the owner of a command, or "" if it names none. Raises BadRequest for a name that is no safe folder."""
    if value and not OWNER.fullmatch(value):
        raise BadRequest(f"{value[:80]!r} is not the name of an account. It must match {OWNER.pattern}.")
    return value


def canonical_uuid(value: object) -> str:
    """Return a uuid as libvirt writes it; raises BadRequest."""
    text = word("uuid", value)
    try:
        return str(uuidlib.UUID(text))
    except ValueError:
        raise BadRequest(f"{text[:80]!r} is not a uuid. `vmachines.list` shows the uuids.") from None


def generation(value: object) -> int | None:
    """Return a generation, or None if the caller gives none, as on Salt's command line. Raises BadRequest."""
    if value is None or value == "":
        return None
    try:
        number = msgspec.convert(value, int, strict=False)
    except msgspec.ValidationError:
        number = 0
    if number < 1:
        raise BadRequest(f"generation={value!r} is not allowed. Give a whole number, 1 or more.")
    return number


def check_fitting(verb: str, function: Callable[..., object], /, *arguments: object, **parameters: object) -> None:
    """Raise BadRequest for an unknown or a missing parameter of a verb."""
    try:
        inspect.signature(function).bind(*arguments, **parameters)
    except TypeError as err:
        # Python's message names the parameter.
        raise BadRequest(f"{verb}: {err}. See the parameters of {verb} on the page /docs. {NEWER}") from err


def actions(value: object) -> Sequence[object]:
    """Return the commands of an `apply`, given as a list or as JSON; raises BadRequest. `action` checks each one."""
    found = listed(value)
    if not isinstance(found, list):
        raise BadRequest("The actions are not a list. See worker_service.contract.Action.")
    return found


def action(value: object) -> Action:
    """Return one command of an `apply`. Raises BadRequest, also for a command that only newer workers know."""
    given = dict(_mapping(value))
    if isinstance(given.get("params"), Mapping):
        given["params"] = _plain(given["params"])
    try:
        made: Action = msgspec.convert(given or value, Action, strict=False)
    except msgspec.ValidationError as err:
        why = refusal_of_any(given) or refusal_of_any(_mapping(given.get("params")))
        raise BadRequest(why or f"This action is not right: {err}. {NEWER}") from err
    check_known(given.keys() - {"verb"}, type(made))
    check_known(given.get("params", ()), type(made.params))
    return made


def check_known(given: Iterable[str], shape: type[msgspec.Struct]) -> None:
    """Raise BadRequest that names the fields that `shape` does not have."""
    if unknown := sorted(set(given) - set(shape.__struct_fields__)):
        raise BadRequest(f"Unknown parameter: {', '.join(unknown)[:200]}. {NEWER}")


def flag(value: object) -> bool:
    """Return a boolean as people and query strings write it; raises BadRequest."""
    try:
        return msgspec.convert(value.lower() if isinstance(value, str) else value, bool, strict=False)
    except msgspec.ValidationError:
        raise BadRequest(f"{value!r} is neither true nor false.") from None


def seconds(value: object) -> float:
    """Return a time limit in seconds; raises BadRequest."""
    try:
        number = msgspec.convert(value, float, strict=False)
    except msgspec.ValidationError:
        number = -1.0
    if not 0 <= number <= 3600:
        raise BadRequest(f"timeout_s={value!r} is not allowed. Give seconds, 0 to 3600.")
    return number


def listed(value: object, parameter: str = "") -> object:
    """Return a list from a list, JSON, or a text with the entries of a parameter. Other values are left unchanged."""
    if isinstance(value, str):
        if not value.lstrip().startswith("["):
            return guest_entries(parameter, value)
        value = decode_json(value, f"{value[:80]!r} begins like JSON and")
    if isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value):
        return guest_entries(parameter, value)
    return value


def decode_json(data: bytes | str, what: str) -> object:
    """Return the value of a JSON text. Raises BadRequest, also for a field that an object has twice.

    Which of two values counts is for each parser to choose, so that a checker before this one may see the other.
    """
    try:
        value: object = msgspec.json.decode(data)
        json.loads(data, object_pairs_hook=_require_distinct)
    except (ValueError, RecursionError) as err:
        raise BadRequest(f"{what} is not JSON: {err}. Correct it.") from err
    return value


def _require_distinct(pairs: list[tuple[str, object]]) -> None:
    require_once(name for name, _value in pairs)


def require_once(names: Iterable[str]) -> None:
    """Raise BadRequest for a name that comes twice."""
    once: set[str] = set()
    for name in names:
        if name in once:
            raise BadRequest(f"{name[:80]!r} is given twice. Give each parameter once, in the query or in the body.")
        once.add(name)


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that are given, with lists from texts. Raises BadRequest."""
    if "network" in parameters:  # `network=None` means the network `none`, and YAML makes nothing of it
        word("network", parameters["network"])
    return {key: _plain_value(key, value) for key, value in parameters.items() if value is not None}


def _plain_value(key: str, value: object) -> object:
    if key in GUEST_LISTS:
        return listed(value, key)
    return value.strip().lower() if key == "run_agent" and isinstance(value, str) else value


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
