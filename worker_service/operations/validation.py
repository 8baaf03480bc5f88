"""What comes through a door, made into checked values. Doors pass plain data: query strings, JSON, YAML.

A field that this version does not know is refused: who sent it wants something that would not be done.
"""

from __future__ import annotations

import inspect
import uuid as uuidlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from worker_service import __version__
from worker_service.contract import GUEST_PARAMETERS, MODIFIABLE, NAME, NAME_PATTERN, Action, Code, Spec
from worker_service.core.errors import BadRequest, Refused
from worker_service.core.settings import ImagePolicy
from worker_service.hypervisor.kvm_xml import parse_network
from worker_service.transfer.registry import check_source, check_target
from worker_service.transfer.uri import blank_size, parse

_LISTS: Final = ("soft_list", "ssh_keys")
NEWER: Final = (
    f"This worker has Saltern {__version__}, and did nothing of it. Correct it, or upgrade the worker where whoever "
    "sent it is newer."
)
"""What to do about an order that this version does not know."""

_MIN_MIB: Final = 16
_MAX_MIB: Final = 64 << 20


def spec(parameters: Mapping[str, Any], policy: ImagePolicy) -> Spec:
    """The checked parameters of a `start`; raises BadRequest or Refused that names the parameter.

    The contract leaves it to the master whether they make sense together; types, names and the site's policy are
    the worker's own safety, whoever calls.
    """
    given = {key: _plain(key, value) for key, value in parameters.items() if value is not None}
    check_known(given, Spec)
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
    _check_guest(made, policy)
    return made


def _check_guest(made: Spec, policy: ImagePolicy) -> None:
    for parameter, (pattern, most, wrong) in GUEST_PARAMETERS.items():
        value = getattr(made, parameter) or ()
        entries = value if isinstance(value, tuple) else (value,)
        if len(entries) > most or len(set(entries)) < len(entries):
            raise BadRequest(f"{parameter} has {len(entries)} entries. Give {most} at most, and each once.")
        for entry in entries:
            if not pattern.fullmatch(entry):
                raise BadRequest(f"{entry[:40]!r} in {parameter} {wrong}.")
    if made.user_data:
        if made.user_data.lstrip().startswith(("#", "{")) or "\n" in made.user_data:
            raise BadRequest(
                "user_data is the URI of a cloud-config document, not the document: what is in a request is shown to "
                "whoever sees the VM. Put it where images lie and name that."
            )
        check_source(parse(made.user_data), policy)


def changes(parameters: Mapping[str, Any], policy: ImagePolicy) -> dict[str, str]:
    """Return the checked parameters of a `modify` that are given; raises BadRequest or Refused."""
    given = {key: str(value) for key, value in parameters.items() if value is not None}
    if unknown := sorted(given.keys() - set(MODIFIABLE)):
        allowed = f"{', '.join(MODIFIABLE[:-1])} and {MODIFIABLE[-1]}"
        raise BadRequest(f"{', '.join(unknown)} cannot be modified. Only {allowed} can.")
    for key, uri in given.items():
        (check_save_to if key.endswith("_save_to") else check_image)(uri, policy)
    return given


def check_image(uri: str | None, policy: ImagePolicy) -> None:
    """Refuse an image URI that could never be fetched here, and a blank disk larger than an image may be."""
    if not uri:
        return
    if (size := blank_size(uri)) is None:
        check_source(parse(uri), policy)
    elif size > policy.max_virtual_gib << 30:
        raise Refused(
            f"{uri} is larger than a disk may be here ({policy.max_virtual_gib} GiB). "
            "Use a smaller one, or raise images.max_virtual_gib in the worker's settings.",
            code=Code.POLICY,
        )


def check_save_to(uri: str | None, policy: ImagePolicy) -> None:
    """Refuse a URI that nothing could ever be saved to from here."""
    if uri:
        check_target(parse(uri), policy)


def identity(uuid: object, name: object) -> tuple[str | None, str | None]:
    """Which VM is meant: the uuid where both are given; raises BadRequest where neither is, or where it is no name."""
    if uuid:
        return canonical_uuid(uuid), None
    if not name:
        raise BadRequest("Which VM? Give uuid or name.")
    if not NAME.fullmatch(str(name)):  # names are looked up as files: what is no name may be a path
        raise BadRequest(f"{str(name)[:80]!r} is no name. `vmachines.list` shows the names.")
    return None, str(name)


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


def check_fitting(verb: str, function: Callable[..., object], /, *arguments: object, **parameters: object) -> None:
    """Raise BadRequest for a parameter that a verb does not know, or one that it misses."""
    try:
        inspect.signature(function).bind(*arguments, **parameters)
    except TypeError as err:
        # Python's own words name the parameter.
        raise BadRequest(f"{verb}: {err}. See the parameters of {verb} on the page /docs. {NEWER}") from err


def actions(value: object) -> Sequence[object]:
    """The commands of an `apply`, or the same as JSON, as a query string has them; raises BadRequest.

    Each of them is still to be checked by `action`.
    """
    found = listed(value)
    if not isinstance(found, list):
        raise BadRequest("The actions are not right: they are no list. See worker_service.contract.Action.")
    return found


def action(value: object) -> Action:
    """One command of an `apply`; raises BadRequest. A newer master may give one that only newer workers know."""
    try:
        made = msgspec.convert(value, Action)
    except msgspec.ValidationError as err:
        raise BadRequest(f"This action is not right: {err}. {NEWER}") from err
    check_known(value if isinstance(value, Mapping) else (), Action)
    return made


def check_known(given: Iterable[str], shape: type[msgspec.Struct]) -> None:
    """Raise BadRequest that names the fields that `shape` has not."""
    if unknown := sorted(set(given) - set(shape.__struct_fields__)):
        raise BadRequest(f"Nobody here knows {', '.join(unknown)[:200]}. {NEWER}")


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


def listed(value: object) -> object:
    """A list as doors pass it: a list, JSON, or words with commas between them; anything else as it is."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        try:
            return msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError) as err:
            raise BadRequest(f"{value[:80]!r} begins like JSON and is none: {err}.") from err
    return [part.strip() for part in value.split(",") if part.strip()]


def _plain(key: str, value: object) -> object:
    """YAML makes numbers and truth values of words, and a list may come as `a,b`: turn them back."""
    if key in _LISTS:
        return listed(value)
    if isinstance(value, str):
        return value.strip().lower() if key == "run_agent" else value
    return str(value) if key == "name" and isinstance(value, int) else value
