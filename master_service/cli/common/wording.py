"""Sentences of masters and workers in the words of the command line. Pure.

Masters and workers speak to every interface: of parameters, of Salt's functions, of HTTP. Somebody who typed a command
knows options and commands. `terminal` is the one place that calls this; documents for programs stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

OPTIONS: Final[Mapping[str, str]] = {
    **{
        name: f"--{name.replace('_', '-')}"
        for name in (
            "cd_image",
            "cpu_count",
            "hda_image",
            "hda_save_to",
            "hdb_image",
            "hdb_save_to",
            "i_have_fenced",
            "mem_size",
            "minion_master",
            "run_agent",
            "run_policy",
            "soft_list",
            "ssh_keys",
            "sys_arch",
            "user_data",
            "webhook_url",
        )
    },
    "api_url": "--api-url",
    "expires_in_s": "--expires-in",
    "mem_mib": "--mem-mib",
    "disk_mib": "--disk-mib",
    "timeout_s": "--timeout",
}
"""parameter -> option."""

PHRASES: Final[Mapping[str, str]] = {
    "(modify can name another place)": "(`saltern modify` can name another place)",
    "; /docs lists all of them": "; `saltern apply --schema` lists those of a VM",
    "/docs lists every path and method.": "Perhaps the master has another version: `saltern doctor` compares them.",
    "GET /operations lists those that you may see.": "`saltern audit` lists what you may see.",
    "Read it again, check its changes, and send the change with the new ETag.": "Look at it, and try again.",
    "Correct these fields and send the request again. /docs lists every parameter.": "`--help` lists every option.",
    "Input should be a valid number, unable to parse string as a number": "it is no number",
    "Input should be a valid integer, unable to parse string as an integer": "it is no whole number",
    "Input should be": "must be",
    "Value error, ": "",
    "status: '": "--status: '",
    "The body is larger than any request needs.": "That is larger than anything that the master takes.",
}
"""A part of a sentence -> the same for the command line."""

FUNCTIONS: Final[Mapping[str, str]] = {
    "cache": "images",
    "cache_prefetch": "images prefetch",
    "list": "list",
    "modify": "modify",
    "save_retry": "save-retry",
    "shutdown": "shutdown",
    "start": "start",
    "status": "show",
}
"""A function of Salt that messages name -> the command."""

_PARAMETER: Final = re.compile(rf"(?<![\w./:=&?-])({'|'.join(OPTIONS)})(?![\w/&-]|\.\w|: -> )")
_FUNCTION: Final = re.compile(rf"(salt \S{{1,255}} )?(`?)vmachines\.({'|'.join(FUNCTIONS)})(?![\w.])(`?)")
_CALL: Final = re.compile(r"\b([Cc])all (save_retry\b|(?=`saltern ))")
_KEYED: Final = re.compile(r" with the Idempotency-Key [^ ]{1,255}")


def for_terminal(text: str, *, of_file: bool = False) -> str:
    """Return a sentence in the words of the command line. A single word, and a row `name: value`, stay as they are.

    `of_file`: the user wrote a file of VMs, which has parameters and no options.
    """
    if " " not in text.strip() or _is_row(text):
        return text
    for phrase, better in PHRASES.items():
        text = text.replace(phrase, better)
    text = _FUNCTION.sub(_command, text)
    text = _CALL.sub(_call, text).replace("save_retry", "save-retry")
    text = _KEYED.sub("", text)
    return text if of_file else _PARAMETER.sub(lambda found: OPTIONS[found[1]], text)


def _is_row(text: str) -> bool:
    name, colon, _ = text.strip().partition(":")
    return bool(colon) and text.startswith(" ") and name in OPTIONS


def _command(found: re.Match[str]) -> str:
    return found[0] if found[1] else f"`saltern {FUNCTIONS[found[3]]}`"


def _call(found: re.Match[str]) -> str:
    return ("Run " if found[1] == "C" else "run ") + ("`saltern save-retry`" if found[2] else "")


def distinct(*texts: str) -> list[str]:
    """Return the texts that say something new: none that an earlier one has in it."""
    found: list[str] = []
    for text in texts:
        if text and not any(text.rstrip(".") in earlier for earlier in found):
            found.append(text)
    return found
