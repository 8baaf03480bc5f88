"""The OpenAPI document of the worker API, made from the signatures of the modules and the types of the contract."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from worker_service.contract import Action, ApplyReply, Code, ListReply, Spec, VMStatus

_JSON: Final = "application/json"
_FORM: Final = "application/x-www-form-urlencoded"
_REF: Final = "#/components/schemas/{name}"
_WHICH: Final[Mapping[str, Any]] = {
    "uuid": {"type": "string", "format": "uuid", "description": "The VM; wins where name is given too."},
    "name": {"type": "string", "description": "The VM's name on this worker."},
    "generation": {"type": "integer", "minimum": 1, "description": "A master's counter; a person leaves it out."},
    "owner": {"type": "string", "description": "The VM's account, from a master; a person leaves it out."},
    "origin": {
        "type": "object",
        "additionalProperties": {"type": "string"},
        "description": "Disk -> URI#sha256=DIGEST of its last save, to start from instead of its image; as JSON.",
    },
    "timeout_s": {"type": "number", "minimum": 0, "maximum": 3600, "description": "Seconds to wait for the end."},
    "ticket_sha256": {
        "type": "string",
        "pattern": "^[0-9a-f]{64}$",
        "description": "SHA-256 of a secret of one's own making; without it the reply has a ticket.",
    },
    "view_only": {"type": "boolean", "description": "Withhold keys and pointer from the guest."},
    "tombstones": {"type": "boolean", "description": "Show also which VMs were destroyed here in the last days."},
    "preview": {"type": "boolean", "description": "Only tell what would be done."},
    "uri": {"type": "string", "description": "Where an image is, or was fetched from."},
    "sha256": {"type": "string", "description": "Digest of an image in the cache."},
    "pin": {"type": "boolean", "description": "It stays in the cache until it is unpinned."},
    "cancel": {"type": "boolean", "description": "Fetch it no longer."},
    "actions": {
        "type": "array",
        "items": {"$ref": _REF.format(name="Action")},
        "description": "Commands with generations; in a query or a form as JSON.",
    },
}
_OF_THE_TOKEN: Final = frozenset({"user", "admin", "token_sha256", "disk"})
_AS_JSON: Final = frozenset({"actions", "origin"})
_REPLIES: Final[Mapping[str, type]] = {"status": VMStatus, "list": ListReply, "apply": ApplyReply}
_REFUSALS: Final[Mapping[int, str]] = {
    400: "It cannot be understood",
    401: "No valid token",
    403: "This token may not, or the site's policy forbids it",
    404: "No such VM here",
    408: "The request did not arrive in time",
    409: "Not in the present state, or an older generation",
    413: "The body is too large",
    422: "Not supported here, or no image that is safe to boot",
    429: "Too many calls; Retry-After says when",
    500: "A bug: the log of the API has the cause",
    502: "An image's or a disk's server did not do it",
    503: "the hypervisor does not answer",
    504: "Not finished within the time asked for; the work goes on",
    507: "No room for it",
}
ABOUT: Final[Mapping[str, Any]] = {
    "summary": "Virtual machines on one hypervisor host",
    "description": "Press **Authorize** and enter a token. Then choose an operation and press **Try it out**. "
    "A program sends the token in the header `Authorization: Bearer TOKEN`. "
    "A verb takes its parameters in the query, in a form or in a JSON object. GET does the same as POST: it may change "
    "things. "
    "The page [VMs](/) shows this worker's VMs.",
    "openapi_tags": [
        {"name": "read", "description": "Look at VMs and images."},
        {"name": "operate", "description": "Change VMs and images."},
        {"name": "console", "description": "See the console of a VM."},
        {"name": "health", "description": "Ask whether the API answers."},
    ],
}
"""What FastAPI takes for the head of the document. The first three tags are the scopes of tokens."""


def operation(verb: str, scope: str, function: Callable[..., Any], *, body: bool) -> dict[str, Any]:
    """The OpenAPI operation of one verb: with its parameters in the query, or in a body of JSON or form."""
    schema = parameters(function)
    text = inspect.cleandoc(function.__doc__ or "").partition("CLI Example:")[0].strip()
    # The modules write reStructuredText, and OpenAPI has Markdown. A summary has no markup.
    summary, _, more = text.replace("``", "`").partition("\n")
    refusals = ("Failure", "ApplyReply") if verb == "apply" else ("Failure",)
    made: dict[str, Any] = {
        "operationId": f"{verb}-{'post' if body else 'get'}",
        "tags": [scope],
        "summary": summary.replace("`", ""),
        "description": f"Needs a token with the scope `{scope}`.\n{more}",
        "security": [{"token": []}],
        "responses": {
            "200": _response("Done", _REPLIES[verb].__name__ if verb in _REPLIES else "Done"),
            **{str(status): _response(text, *refusals) for status, text in _REFUSALS.items()},
        },
    }
    if body:
        form = {name: {"contentType": _JSON} for name in sorted(_AS_JSON & schema["properties"].keys())}
        content = {_JSON: {"schema": schema}, _FORM: {"schema": schema, **({"encoding": form} if form else {})}}
        made["requestBody"] = {"required": bool(schema["required"]), "content": content}
    else:
        made["parameters"] = [
            {"name": name, "in": "query", "required": name in schema["required"], **_in_query(name, each)}
            for name, each in schema["properties"].items()
        ]
    return made


def _in_query(name: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"content": {_JSON: {"schema": schema}}} if name in _AS_JSON else {"schema": schema}


def screenshot() -> dict[str, Any]:
    """The OpenAPI operation of screenshots."""
    refusals = {str(status): _response(text, "Failure") for status, text in _REFUSALS.items()}
    image = {"description": "Done", "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
    return {
        "tags": ["console"],
        "summary": "What a VM's screen shows now.",
        "description": "Needs a token with the scope `console`.",
        "security": [{"token": []}],
        "parameters": [{"name": name, "in": "query", **_in_query(name, _WHICH[name])} for name in ("uuid", "name")],
        "responses": {"200": image, **refusals},
    }


def parameters(function: Callable[..., Any]) -> dict[str, Any]:
    """The schema of a verb's parameters. Raises KeyError for one that neither the contract nor `_WHICH` knows."""
    signature = {k: one for k, one in inspect.signature(function).parameters.items() if k not in _OF_THE_TOKEN}
    fields: dict[str, Any] = msgspec.json.schema_components([Spec])[1]["Spec"]["properties"]
    known = {**_WHICH, **{name: fields[name] for name in fields if name != "name"}}
    return {
        "type": "object",
        "properties": {name: known[name] for name in signature},
        "required": [name for name, one in signature.items() if one.default is one.empty],
        "additionalProperties": False,
    }


def components() -> dict[str, Any]:
    """The shapes that operations refer to."""
    shapes, schemas = msgspec.json.schema_components([Action, VMStatus, ListReply, ApplyReply], ref_template=_REF)
    schemas["Action"] = shapes[0]
    message = {"type": "string"}
    schemas["Done"] = {
        "type": "object",
        "required": ["success", "message"],
        "properties": {"success": {"const": True}, "message": message},
    }
    schemas["Failure"] = {
        "type": "object",
        "required": ["success", "message", "code"],
        "properties": {
            "success": {"const": False},
            "message": {**message, "description": "What failed, why, and what to do."},
            "code": {"enum": [code.value for code in Code]},
        },
        "additionalProperties": False,
    }
    return {
        "schemas": schemas,
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "A token of this worker."}},
    }


def _response(text: str, *schemas: str) -> dict[str, Any]:
    shapes = [{"$ref": _REF.format(name=name)} for name in schemas]
    return {"description": text, "content": {_JSON: {"schema": shapes[0] if len(shapes) == 1 else {"anyOf": shapes}}}}
