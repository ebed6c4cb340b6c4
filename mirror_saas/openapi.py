"""The API's OpenAPI document: what django-ninja says of the operations, and what is true of all of them.

Added here is what no single operation can say: errors that any request can end with, headers of every answer, what a
tag is about, which scope an operation needs, and examples. docs/openapi.json is the document as it was reviewed last;
`make openapi` writes it.
"""

from __future__ import annotations

import copy
import http
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from mirror_saas.openapi_fields import FIELDS
from mirror_saas.problems import CONTENT_TYPE

Schema = dict[str, Any]

DESCRIPTION: Final = """\
Mirror supervises Plivo voice agents while they talk: it judges every turn, corrects mid-call and gates irreversible \
tools.

- **Keys**: send `Authorization: Bearer mk_…`. A key belongs to one tenant, and nothing in a request names another: an \
object of somebody else and one that never was are both 404.
- **Errors** are `application/problem+json` (RFC 9457). `errors` maps each field that cannot be used to its messages; \
`request_id`, also in `X-Request-Id`, stands in Mirror's log.
- **Lists** are pages, newest first unless they say otherwise: pass `next` on as `cursor` until it is null. What is \
written while you page moves nothing.
- **Writes** take an `Idempotency-Key`, which makes them safe to send again.
- **Policies** answer with an `ETag` and change only with it in `If-Match`, so that two editors do not overwrite each \
other.
- **Times** are RFC 3339 with a zone, durations are whole milliseconds (`…_ms`), ids are UUIDs. More fields may come: \
ignore those that you do not know.
"""

TAGS: Final[dict[str, str]] = {
    "me": "Who asks.",
    "agents": "Voice agents: where they listen, the keys that Plivo dials them with, and trying one out.",
    "policies": "Rules in plain language, their versions, and which agents they judge.",
    "credentials": "Access to language models, voices, Plivo accounts and forges. Secrets are never shown again.",
    "calls": "Calls, live and past, with what was said, heard and judged.",
    "decisions": "Verdicts, tool decisions and interventions of all calls, as pages or files, and reviewers' labels.",
    "judge": "Judging for agents that do not speak `mirror.*` on their socket.",
    "usage": "What was judged, and what it cost.",
    "webhooks": "Events that Mirror sends to endpoints of yours, signed as Standard Webhooks has it.",
    "alarms": "What went wrong, and who is mailed of it.",
    "audit log": "Who did what. Nothing changes or removes an event, and a chain of hashes shows it.",
    "API keys": "The tenant's keys for programs.",
    "tenant": "The tenant's settings, its limits, and what is kept of calls.",
    "members": "Who belongs to the tenant, as what.",
    "invitations": "People who may become members.",
}

# Statuses that errors come with: the name in components/responses, and when.
ERRORS: Final[dict[int, tuple[str, str]]] = {
    400: ("BadRequest", "The request cannot be read: its JSON, its encoding, or its number of fields."),
    401: ("Unauthorized", "No key and no session, or one that is wrong, revoked or expired."),
    403: ("Forbidden", "The key or the person may not do this, or has to sign in again first."),
    404: ("NotFound", "There is no such object in this tenant."),
    409: ("Conflict", "It cannot be done as things are, or the same request runs already; `detail` says which."),
    412: ("PreconditionFailed", "Somebody changed the object since; `ETag` is that of its present state."),
    413: ("ContentTooLarge", "The body is larger than 10 MiB."),
    422: ("UnprocessableContent", "Fields cannot be used; `errors` says which and why. Nothing was done."),
    428: ("PreconditionRequired", "`If-Match` is missing."),
    429: ("TooManyRequests", "The limit of the key, the person or the tenant is used up."),
    500: ("InternalServerError", "Mirror failed. Its log has the `request_id`."),
    502: ("BadGateway", "The server of a credential gave no usable answer."),
    503: ("ServiceUnavailable", "The database, or the node that has the call, does not answer; try again shortly."),
}
# Newer versions of Python call these otherwise, and the document is the same with all.
_TITLES: Final = {413: "Request Entity Too Large", 422: "Unprocessable Entity"}
_DETAILS: Final = {
    400: "Cannot parse request body",
    401: "Send `Authorization: Bearer mk_…` with a key that is neither revoked nor expired, or sign in to the console.",
    403: "This needs the scope admin. Use a key or a role that has it.",
    404: "There is no such object.",
    409: "A policy with this name exists already.",
    412: "Somebody changed this since you read it; read it again.",
    413: "The request's body is too large; 10 MiB are the most.",
    422: "Some fields cannot be used; `errors` says which and why.",
    428: "Send If-Match with the ETag that you read.",
    429: "The API takes 600 requests a minute from this key; the next one in 12 s.",
    500: "Mirror failed to answer. The request_id stands in its log.",
    502: "The language model gave no usable answer.",
    503: "The database does not answer; try again shortly.",
}
# Whoever asks, and whatever for.
_ALWAYS: Final = (400, 401, 429, 500, 503)

HEADERS: Final[dict[str, Schema]] = {
    "X-Request-Id": {
        "description": "The request's id in Mirror's log.",
        "required": True,
        "schema": {"type": "string"},
        "example": "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
    },
    "RateLimit-Limit": {
        "description": "Requests that fit into a minute. Missing, like the two others, where there is no limit.",
        "schema": {"type": "integer"},
        "example": 600,
    },
    "RateLimit-Remaining": {
        "description": "How many of them are left.",
        "schema": {"type": "integer"},
        "example": 599,
    },
    "RateLimit-Reset": {
        "description": "Seconds until there are more again.",
        "schema": {"type": "integer"},
        "example": 12,
    },
    "Retry-After": {
        "description": "Seconds to wait before the next request.",
        "schema": {"type": "integer"},
        "example": 12,
    },
    "WWW-Authenticate": {
        "description": "How to show who asks.",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="mirror"',
    },
    "ETag": {
        "description": "The object's state; what `If-Match` takes.",
        "required": True,
        "schema": {"type": "string"},
        "example": '"3"',
    },
    "Location": {
        "description": "Where the new object is.",
        "required": True,
        "schema": {"type": "string"},
        "example": "/api/v1/agents/0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d",
    },
    "Idempotency-Replayed": {
        "description": "`true`: the stored answer of the first request with this `Idempotency-Key`.",
        "schema": {"type": "string"},
        "example": "true",
    },
    "Content-Disposition": {
        "description": "The file's name; of CSV and JSON lines only.",
        "schema": {"type": "string"},
        "example": 'attachment; filename="verdicts.csv"',
    },
}
_RATES: Final = ("RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset")

SECURITY: Final[dict[str, str]] = {
    "BearerKey": "An API key, `mk_<prefix>_<secret>`, made in the console, with `POST /api-keys` or with"
    " `manage.py api_key`.",
    "SessionMember": "The console's session. Writes need `X-CSRFToken` as well, dangerous ones a recent sign-in.",
}

_ID = "0199d1a2-7c3e-7b1a-9f00-3d2c1b0a9e8d"
_TIME = "2026-03-04T12:00:00Z"
# Example values of properties by name, where the type says too little.
EXAMPLES: Final[dict[str, Any]] = {
    "action": "agent.create",
    "agent_name": "Front desk",
    "args": {"order_id": "4711"},
    "code": "ok",
    "correction": "I cannot confirm a refund, but I can take your request.",
    "correction_text": "I cannot confirm a refund, but I can take your request.",
    "customer_text": "Can I have my money back?",
    "text": "I have refunded it.",
    "email": "alice@example.com",
    "etag": '"3"',
    "from_number": "+14155550123",
    "to_number": "+14155550199",
    "hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "prev_hash": "60303ae22b998861bce3b28f33eec1be758a213c86c93c076dbe9f558c11c752",
    "head_hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "ip": "203.0.113.7",
    "last_used_ip": "203.0.113.7",
    "key": "mk_4f9a1c2e_…",
    "kind": "llm",
    "label": "confirmed",
    "language": "en",
    "link": "https://mirror.example.com/invitation/…",
    "mode": "live",
    "name": "Front desk",
    "next": "WyIyMDI2LTAzLTA0VDEyOjAwOjAwWiJd",
    "node": "web-1",
    "number": 3,
    "object_type": "agent",
    "plan": "cut",
    "prefix": "4f9a1c2e",
    "reason": "The agent confirms a refund.",
    "rule": "Never confirm a refund.",
    "scopes": ["calls:read"],
    "score": 0.93,
    "sdk": "plivo-stream-sdk/0.1.1",
    "severity": "high",
    "signing_secret": "whsec_…",
    "slug": "pizzeria",
    "state": "judged",
    "status": "live",
    "threshold": 0.8,
    "turn_id": _ID,
    "upstream_url": "wss://agents.example.com/front-desk",
    "version": 3,
}

# What `If-Match` can be (RFC 9110): any state, or entity tags.
ENTITY_TAGS: Final = r'^(\*|(W/)?"[!#-~]*"(, ?(W/)?"[!#-~]*")*)$'

_PAGE = re.compile(r"PageOut_(\w+?)(?:Out)?_$")


def document(
    made: Mapping[str, Any], capabilities: Mapping[str, str | None], webhooks: tuple[Schema, Schema]
) -> dict[str, Any]:
    """The document, from what ninja made, the capability that each operation (by its id) needs, if any, and the section
    `webhooks` with its shapes."""
    # Ninja's has its own OrderedDict types and enumerations in it; a document is plain JSON.
    schema: dict[str, Any] = json.loads(json.dumps(made, default=str))
    schema = _renamed(schema)
    schema["info"] |= {
        "description": DESCRIPTION,
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    }
    schema["servers"] = [{"url": "/", "description": "This installation."}]
    used = {tag for _, _, operation in operations(schema) for tag in operation["tags"]}
    schema["tags"] = [{"name": name, "description": text} for name, text in TAGS.items() if name in used]
    components = schema["components"]
    for name, description in SECURITY.items():
        components["securitySchemes"][name]["description"] = description
    components["headers"] = copy.deepcopy(HEADERS)
    components["responses"] = {name: _error(status) for status, (name, _) in ERRORS.items()}
    gettable = [path for path, method, _ in operations(schema) if method == "get"]
    for path, method, operation in operations(schema):
        _complete(operation, components["schemas"], capabilities.get(operation["operationId"]))
        # What is made in a list has a place of its own there.
        if method == "post" and any(re.fullmatch(rf"{re.escape(path)}/{{\w+}}", other) for other in gettable):
            operation["responses"]["201"]["headers"] |= _headers(["Location"])
    schema["webhooks"], shapes = copy.deepcopy(webhooks)
    components["schemas"] |= shapes
    _drop_unused(schema)
    for name, shape in components["schemas"].items():
        _untitle(shape)
        _explain(name, shape)
    return schema


def operations(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Every operation of a document: path, method, and what is said of it."""
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


def resolved(schema: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """`part` of a document, or what its `$ref` names."""
    found: Any = part
    while "$ref" in found:
        *_, kind, name = found["$ref"].split("/")
        found = schema["components"][kind][name]
    return found  # type: ignore[no-any-return]


def text(schema: Mapping[str, Any]) -> str:
    """The document as docs/openapi.json has it."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def _renamed(schema: dict[str, Any]) -> dict[str, Any]:
    """Pages by a name that a client's type can have."""
    names = {name: f"{match[1]}Page" for name in schema["components"]["schemas"] if (match := _PAGE.match(name))}
    written = json.dumps(schema)
    for old, new in names.items():
        written = written.replace(f'"{old}"', f'"{new}"').replace(f'schemas/{old}"', f'schemas/{new}"')
    renamed: dict[str, Any] = json.loads(written)
    for name in names.values():
        renamed["components"]["schemas"][name]["title"] = name
    return renamed


def _error(status: int) -> dict[str, Any]:
    _, description = ERRORS[status]
    example = {
        "type": "about:blank",
        "title": _TITLES.get(status) or http.HTTPStatus(status).phrase,
        "status": status,
        "detail": _DETAILS[status],
        "errors": {"name": ["Field required"]} if status == 422 else {},
        "request_id": _ID,
    }
    headers = ["X-Request-Id"] if status != 413 else []
    headers += {
        401: ["WWW-Authenticate"],
        409: ["Retry-After"],
        412: ["ETag"],
        429: [*_RATES, "Retry-After"],
        503: ["Retry-After"],
    }.get(status, [])
    return {
        "description": description,
        "headers": _headers(headers),
        "content": {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}},
    }


def _headers(names: list[str]) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _complete(operation: dict[str, Any], schemas: dict[str, Any], capability: str | None) -> None:
    if capability is not None:
        operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope `{capability}`.".strip()
        operation["x-required-scope"] = capability
    parameters = operation.get("parameters", [])
    repeats = any(parameter["name"] == "Idempotency-Key" for parameter in parameters)
    for parameter in parameters:
        _describe(parameter)
    statuses = {int(status) for status in operation["responses"]} | set(_ALWAYS)
    if capability is not None:
        statuses.add(403)
    if repeats:
        # The key's own refusals: the first request with it still runs, or it was another one.
        statuses |= {409, 422}
    if parameters:
        statuses.add(422)
    if "requestBody" in operation:
        statuses |= {413, 422}
        _example_of_body(operation["requestBody"], schemas)
    answers = {}
    for status in sorted(statuses):
        if status >= 400:
            answers[str(status)] = {"$ref": f"#/components/responses/{ERRORS[status][0]}"}
        else:
            answers[str(status)] = _answer(operation["responses"][str(status)], status, schemas, repeats)
    operation["responses"] = answers


def _answer(response: dict[str, Any], status: int, schemas: dict[str, Any], repeats: bool) -> dict[str, Any]:
    names = ["X-Request-Id", *_RATES]
    if repeats:
        names.append("Idempotency-Replayed")
    content = response.get("content", {})
    if any(kind != "application/json" for kind in content):
        names.append("Content-Disposition")
    if body := content.get("application/json"):
        shape = _at(schemas, body["schema"])
        if "etag" in shape.get("properties", {}):
            names.append("ETag")
        body["example"] = example_of(body["schema"], schemas)
    response["headers"] = {**_headers(names), **response.get("headers", {})}
    return response


def _describe(parameter: dict[str, Any]) -> None:
    schema = parameter["schema"]
    if "description" not in parameter and (said := _PARAMETERS.get(parameter["name"])):
        parameter["description"] = said
    # It stands beside the schema; twice is once too often.
    schema.pop("description", None)
    schema.pop("title", None)
    # A query has no null: a parameter is there or it is not.
    if parameter["in"] != "path" and "anyOf" in schema:
        kinds = [kind for kind in schema["anyOf"] if kind != {"type": "null"}]
        rest = {name: value for name, value in schema.items() if name != "anyOf"}
        parameter["schema"] = {**kinds[0], **rest} if len(kinds) == 1 else {**rest, "anyOf": kinds}
    if parameter["name"] == "If-Match":
        parameter["required"] = True
        parameter["example"] = '"3"'
        parameter["schema"]["pattern"] = ENTITY_TAGS


_PARAMETERS: Final = {
    "acted": "Whether Mirror acted on it.",
    "actor_id": "Done by this person or key.",
    "actor_kind": "Done by a person, a key, or the system (a command or a task).",
    "after_seq": "Leave out the events up to this one.",
    "agent_id": "The agent.",
    "allow": "Whether the tool was allowed.",
    "api_key_id": "The API key.",
    "call_id": "The call.",
    "credential_id": "The credential.",
    "delivery_id": "The delivery.",
    "decision_id": "The tool decision.",
    "intervention_id": "The intervention.",
    "invitation_id": "The invitation.",
    "irreversible": "Whether the agent calls the tool irreversible.",
    "kind": "What it is for.",
    "late": "Whether it came after the turn was let go.",
    "member_id": "The membership.",
    "min_score": "Scores from this one on.",
    "number": "The version's number.",
    "object_id": "About this object.",
    "object_type": "About objects of this type, such as `agent`.",
    "other": "The number of the version to compare with.",
    "outcome": "How it ended, for example `completed`.",
    "plan": "What Mirror set out to do, for example `cut`.",
    "policy_id": "The policy.",
    "state": "The state it is in.",
    "status": "The status it has.",
    "stream_key_id": "The stream key.",
    "turn_id": "The turn.",
    "webhook_id": "The webhook.",
    "endpoint_id": "The webhook's endpoint.",
}


def _example_of_body(body: dict[str, Any], schemas: dict[str, Any]) -> None:
    for content in body["content"].values():
        schema = content["schema"]
        kinds = [kind for kind in schema.get("anyOf", []) if kind != {"type": "null"}]
        shape = _at(schemas, kinds[0] if kinds else schema)
        given = shape.get("examples") or [example_of(shape, schemas, required_only=True)]
        content["examples"] = {f"example{index}": {"value": value} for index, value in enumerate(given, start=1)}


def example_of(schema: Mapping[str, Any], schemas: Mapping[str, Any], *, required_only: bool = False) -> Any:
    """A value of this shape, from the examples of its parts."""
    return _example("", schema, schemas, required_only)


def _example(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any], required_only: bool) -> Any:
    schema = _at(schemas, schema)
    if "examples" in schema:
        return schema["examples"][0]
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        known = EXAMPLES.get(name)
        return known if known in schema["enum"] else schema["enum"][0]
    if kinds := schema.get("anyOf") or schema.get("allOf"):
        # What ended, failed or was revoked is the exception.
        if name.endswith(("revoked_at", "failed_at_ms", "expires_at", "rolled_back_at", "problem")):
            return None
        return _example(name, kinds[0], schemas, required_only)
    return _example_of_type(name, schema, schemas, required_only)


def _example_of_type(name: str, schema: Mapping[str, Any], schemas: Mapping[str, Any], required_only: bool) -> Any:
    kind = schema.get("type")
    if kind == "object":
        shown = schema.get("properties", {})
        wanted = schema.get("required", []) if required_only else shown
        return {each: _example(each, shown[each], schemas, required_only) for each in shown if each in wanted}
    known = EXAMPLES.get(name)
    if kind == "array":
        if isinstance(known, list):
            return known
        items = schema.get("items")
        return [_example(name.removesuffix("s"), items, schemas, required_only)] if items else []
    if kind == "string":
        if form := schema.get("format"):
            return {"uuid": _ID, "date-time": _TIME, "date": _TIME[:10]}.get(form, "")
        if "pattern" in schema and not isinstance(known, str):
            return "0"
        return known if isinstance(known, str) else "x" * schema.get("minLength", 0)
    if kind == "boolean":
        return False
    if kind in ("integer", "number"):
        number = known if isinstance(known, int | float) else schema.get("minimum", 0)
        return int(number) if kind == "integer" else number
    return None


def _at(schemas: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    while "$ref" in schema:
        schema = schemas[schema["$ref"].rpartition("/")[2]]
    return schema


def _untitle(shape: dict[str, Any]) -> None:
    """Take out the titles of fields: they repeat the names, and generators make types of them."""
    for field in shape.get("properties", {}).values():
        field.pop("title", None)
        _untitle(field)


def _explain(name: str, shape: dict[str, Any]) -> None:
    if name.endswith("Page"):
        shape.setdefault("description", "One page of a list.")
    for field, schema in shape.get("properties", {}).items():
        said = FIELDS.get(f"{name}.{field}", FIELDS.get(field))
        if said is not None and "$ref" not in schema:
            schema.setdefault("description", said)


def _drop_unused(schema: dict[str, Any]) -> None:
    """Shapes that nothing refers to: ninja lists those of queries, whose fields stand with the operations."""
    for kind in ("responses", "headers", "schemas"):
        parts = schema["components"][kind]
        while True:
            written = json.dumps(schema)
            unused = [name for name in parts if f'#/components/{kind}/{name}"' not in written]
            if not unused:
                break
            for name in unused:
                del parts[name]
