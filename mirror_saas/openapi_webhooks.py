"""The `webhooks` of the OpenAPI document: which messages Mirror sends to endpoints, and what their answers do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

Schema = dict[str, Any]

_REF: Final = "#/components/schemas/{model}"
_HEADERS: Final[dict[str, tuple[Schema, str, str]]] = {
    "webhook-id": (
        {"type": "string", "format": "uuid"},
        "The event: the same for every endpoint and attempt, so that what came twice is known.",
        "0199d1a2-7c3e-5b1a-9f00-3d2c1b0a9e8d",
    ),
    "webhook-timestamp": (
        {"type": "string", "pattern": "^[0-9]+$"},
        "When this attempt was sent, in seconds since 1970. Refuse what is older than five minutes.",
        "1772625600",
    ),
    "webhook-signature": (
        {"type": "string"},
        "`v1,` and the base64 of HMAC-SHA256 over `{webhook-id}.{webhook-timestamp}.{body}`, with what follows `whsec_`"
        " in the endpoint's secret, decoded; two of them, with a blank between, while a secret is rotated.",
        "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4=",
    ),
}
_ANSWERS: Final = {
    "2XX": "It was taken, if the answer came within 15 s.",
    "410": "It is switched off: nothing more is sent to the endpoint.",
    "default": "It is sent again later, 12 times in about two days, no sooner than `Retry-After` says. Redirects are"
    " not followed.",
}


def webhooks(types: Mapping[str, str], messages: Mapping[str, type[BaseModel]]) -> tuple[Schema, Schema]:
    """The section, and the shapes that it refers to: of each type what happened (`types`) and the facts that a message
    names (`messages`)."""
    _, made = models_json_schema([(facts, "serialization") for facts in messages.values()], ref_template=_REF)
    shapes: Schema = made["$defs"]
    section: Schema = {}
    for name, said in types.items():
        facts = messages[name].__name__
        message = f"{facts.removesuffix('Told')}Message"
        shapes[message] = _message(name, said, facts)
        example = {
            "type": name,
            "timestamp": "2026-03-04T12:00:00Z",
            "data": shapes[facts].pop("examples")[0],
        }
        # Receivers are built for what is to come, too.
        shapes[facts].pop("additionalProperties", None)
        section[name] = {"post": _operation(name, said, message, example)}
    return section, shapes


def _message(name: str, said: str, facts: str) -> Schema:
    return {
        "title": f"{facts.removesuffix('Told')}Message",
        "description": said,
        "type": "object",
        "required": ["type", "timestamp", "data"],
        "properties": {
            "type": {"const": name, "type": "string", "description": "What happened."},
            "timestamp": {"type": "string", "format": "date-time", "description": "When it happened."},
            "data": {"$ref": _REF.format(model=facts)},
        },
    }


def _operation(name: str, said: str, message: str, example: Any) -> Schema:
    return {
        "operationId": f"on_{name.replace('.', '_')}",
        "summary": name,
        "description": f"{said} Sent at least once, in no promised order, signed as Standard Webhooks has it.",
        "tags": ["webhooks"],
        "security": [],
        "parameters": [
            {"name": header, "in": "header", "required": True, "description": text, "schema": schema, "example": value}
            for header, (schema, text, value) in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": _REF.format(model=message)},
                    "examples": {"example1": {"value": example}},
                }
            },
        },
        "responses": {status: {"description": text} for status, text in _ANSWERS.items()},
    }
