"""Secrets in URIs: users and passwords, signatures and tokens in a query. One rule for both services.

A URI is a parameter of a VM. Salt keeps it in its job cache and on its event bus, and both services show and store it.
A URI with a secret is therefore refused: the worker has credentials for the store of each image in its settings. What
may still have one, such as an error or a record of an older version, is masked by the same rule.
"""

from __future__ import annotations

import logging
import re
from typing import Any, Final, TypeVar
from urllib.parse import unquote, unquote_plus

import msgspec

MASK: Final = "***"
ADVICE: Final = (
    "URIs are shown, stored and sent through Salt. Leave the secret out; [images.stores] in the worker's settings has "
    "the credentials of a store"
)
_LONGEST: Final = 2048
_DEPTH: Final = 3
"""A URI may be a parameter of another one, and encoded there."""

_LEAD: Final = re.compile(r"[^/?#@]*//")
"""What stands before the authority: `https://`, or a quotation mark and that."""

_END: Final = re.compile(r"[/?#]")
_HOST: Final = re.compile(r"(?:\[[^\[\]@]*\]|[^:\[\]@]*)(?::(?:PORT|([0-9]{0,5})))?")
"""With PORT as in advice: https://HOST:PORT."""

_PARAMETER: Final = re.compile(r"([?&;#])([^?&;#=]+)=([^&;#]*)")
_NAMES: Final = re.compile(
    r"x-(?:amz|goog|oss|obs|tos|cos)-|q-(?:ak|sign|key)"  # all parameters of a presigned URL
    r"|token|secret|passw|signature|credential|ticket|apikey|accesskey|accessid|sess(?:ion)?_?id"
    r"|(?:^|[^a-z0-9])(?:sig|sign|key|pass|pwd|auth|authorization|jwt|hmac|sid|hdnts|hdnea)(?:[^a-z0-9]|\Z)"
)
_WORD: Final = re.compile(r"[^\s\"<>`\\]+")
_NO_URI: Final = re.compile(r"[\x00-\x20\x7f\\]")
_OPENING: Final = "'([{"
_CLOSING: Final = "'\").,:;!]}"

Parameters = TypeVar("Parameters", bound=msgspec.Struct)
URI_PARAMETERS: Final = ("hda_image", "hda_save_to", "hdb_image", "hdb_save_to", "cd_image", "user_data")
"""The parameters of a VM that are URIs."""


def has_secret(uri: str) -> bool:
    """Return whether a URI has a secret. A masked one has none any more."""
    return masked_uri(uri) != uri


def masked_uri(uri: str) -> str:
    """Return one URI with `***` in place of each secret. Source: RFC 3986; a name of a parameter may be encoded."""
    return _masked(uri, _DEPTH)


def masked(text: str) -> str:
    """Return a text with every URI in it masked. It takes time in proportion to the length."""
    return _WORD.sub(_masked_word, text) if "//" in text or "@" in text or "=" in text else text


def shown(text: str) -> str:
    """Return what an error may repeat of a text that was given as a URI and need not be one."""
    if len(text) > _LONGEST:
        return "…"
    if _NO_URI.search(text) and "@" in text:  # a password may have blanks, so that its end is only the last @
        lead = _LEAD.match(text)
        return f"{lead[0] if lead else ''}{MASK}@{text.rpartition('@')[2]}"
    return masked_uri(text)


def masked_parameters(spec: Parameters) -> Parameters:
    """Return a VM's parameters with masked URIs."""
    given = {name: getattr(spec, name) for name in URI_PARAMETERS if hasattr(spec, name)}
    changed = {name: made for name, uri in given.items() if uri and (made := masked_uri(uri)) != uri}
    return msgspec.structs.replace(spec, **changed) if changed else spec


def mask_fields(message: msgspec.Struct, *names: str) -> None:
    """Mask secrets in texts of a message that is being made. None stays as it is."""
    for name in names:
        if (text := getattr(message, name)) and (made := masked(text)) != text:
            msgspec.structs.force_setattr(message, name, made)


def masked_values(value: Any) -> Any:
    """Return plain data with every text in it masked, also the keys of its dictionaries."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, list | tuple):
        return [masked_values(each) for each in value]
    if isinstance(value, dict):
        return {masked_values(key): masked_values(each) for key, each in value.items()}
    return value


class MaskingFormatter(logging.Formatter):
    """Formats the lines of a log with masked URIs, also those of other libraries and in tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        return masked(super().format(record))


def _masked_word(found: re.Match[str]) -> str:
    word = found[0].lstrip(_OPENING)
    opening, word = found[0][: -len(word) or None], word.rstrip(_CLOSING)
    return opening + _masked(word, _DEPTH) + found[0][len(opening) + len(word) :]


def _masked(uri: str, depth: int) -> str:
    lead = _LEAD.match(uri)
    begin = lead.end() if lead else 0
    end = found.start() if (found := _END.search(uri, begin)) else len(uri)
    authority, rest = uri[begin:end], uri[end:]
    if lead and "@" in rest and not _is_host(authority.rpartition("@")[2]):
        behind = rest.rpartition("@")[2]  # a password with a slash in it
        end = found.start() if (found := _END.search(behind)) else len(behind)
        authority, rest = f"@{behind[:end]}", behind[end:]
    user, at, host = authority.rpartition("@")
    # Without //, a text with an @ may be a mail address. With a colon before it, it is a user and a password.
    if is_user := at and (lead or ":" in user):
        user = MASK
    if (lead or is_user) and not _is_host(host):
        host = f"{host.partition(':')[0]}:{MASK}"  # a password where the port belongs
    return f"{uri[:begin]}{user}{at}{host}{_masked_query(rest, depth)}"


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and int(found[1] or 0) < 1 << 16


def _masked_query(text: str, depth: int) -> str:
    def mask(found: re.Match[str]) -> str:
        mark, name, value = found.groups()
        is_secret = value and (_NAMES.search(unquote_plus(name).lower()) or _holds_secret(value, depth))
        return f"{mark}{name}={MASK}" if is_secret else found[0]

    return _PARAMETER.sub(mask, text) if "=" in text else text


def _holds_secret(value: str, depth: int) -> bool:
    """Return whether the value of a parameter is a URI with a secret, or a part of one."""
    for _ in range(depth):
        encoded, value = value, unquote(value)
        if _masked(value, depth - 1) != value:
            return True
        if value == encoded:
            break
    return False
