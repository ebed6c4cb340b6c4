"""The OpenAPI document: what generators of clients and people need of it, and that it changes only on purpose."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from mirror_saas import openapi
from mirror_saas.api import api
from mirror_saas.ids import uuid7
from mirror_saas.openapi_fields import FIELDS
from supervision.webhooks import EVENT_TYPES, TEST_TYPE, headers_make, secret_make

SNAPSHOT = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"
DOCUMENT: dict[str, Any] = api.get_openapi_schema()
OPERATIONS = [(f"{method.upper()} {path}", operation) for path, method, operation in openapi.operations(DOCUMENT)]
MESSAGES = [(name, path["post"]) for name, path in DOCUMENT["webhooks"].items()]
by_operation = pytest.mark.parametrize("operation", [pytest.param(op, id=name) for name, op in OPERATIONS])


def test_the_contract_changes_on_purpose() -> None:
    """A change shows up in docs/openapi.json, and with it in the review."""
    reviewed = SNAPSHOT.read_text(encoding="utf-8")
    made = openapi.text(DOCUMENT)
    changes = "\n".join(
        difflib.unified_diff(
            reviewed.splitlines(), made.splitlines(), "docs/openapi.json", "the API as it is", lineterm="", n=4
        )
    )
    assert made == reviewed, f"The API's contract changed. If that is meant, run `make openapi` and commit.\n{changes}"


def test_the_document_as_a_whole() -> None:
    assert DOCUMENT["openapi"].startswith("3.1")
    assert set(DOCUMENT["info"]) >= {"title", "version", "description", "license"}
    assert DOCUMENT["servers"]
    schemes = DOCUMENT["components"]["securitySchemes"]
    assert {name: scheme["type"] for name, scheme in schemes.items()} == {
        "BearerKey": "http",
        "SessionMember": "apiKey",
    }
    assert all(scheme["description"] for scheme in schemes.values())
    described = {tag["name"] for tag in DOCUMENT["tags"] if tag["description"]}
    assert described == {tag for _, operation in OPERATIONS for tag in operation["tags"]}


def test_operation_ids_are_names_of_their_own() -> None:
    identifiers = [operation["operationId"] for _, operation in [*OPERATIONS, *MESSAGES]]
    assert len(set(identifiers)) == len(identifiers)
    assert [each for each in identifiers if not re.fullmatch(r"[a-z]+(_[a-z]+)+", each)] == []
    assert [name for name in DOCUMENT["components"]["schemas"] if not re.fullmatch(r"[A-Z][A-Za-z0-9]*", name)] == []


def test_every_reference_leads_somewhere() -> None:
    references = set(re.findall(r'"#/components/(\w+)/([^"]+)"', json.dumps(DOCUMENT)))
    missing = {(kind, name) for kind, name in references if name not in DOCUMENT["components"][kind]}
    assert missing == set()


@by_operation
def test_an_operation_says_what_it_is_for(operation: dict[str, Any]) -> None:
    assert operation["summary"]
    assert operation["description"]
    assert operation["security"] == [{"BearerKey": []}, {"SessionMember": []}]
    if scope := operation.get("x-required-scope"):
        assert f"`{scope}`" in operation["description"]
    assert [each["name"] for each in operation.get("parameters", []) if not each.get("description")] == []


@by_operation
def test_an_operation_lists_its_errors_and_headers(operation: dict[str, Any]) -> None:
    answers = {status: openapi.resolved(DOCUMENT, each) for status, each in operation["responses"].items()}
    assert {"400", "401", "429", "500", "503"} <= set(answers)
    names = {parameter["name"] for parameter in operation.get("parameters", [])}
    if "Idempotency-Key" in names:
        assert {"409", "422"} <= set(answers)
    if "If-Match" in names:
        assert {"412", "428"} <= set(answers)
    if "requestBody" in operation:
        assert {"413", "422"} <= set(answers)
    for status, answer in answers.items():
        assert answer["description"], status
        if int(status) < 400:
            assert {"X-Request-Id", "RateLimit-Limit", "RateLimit-Remaining", "RateLimit-Reset"} <= set(
                answer["headers"]
            )
        else:
            (content,) = answer["content"].items()
            assert content[0] == "application/problem+json"
            assert content[1]["example"]["status"] == int(status)
    for status in {"429", "503"}:
        assert "Retry-After" in answers[status]["headers"]


def examples() -> Iterator[Any]:
    """Every example of a body, with its shape."""
    errors = DOCUMENT["components"]["responses"].items()
    for name, operation in [*OPERATIONS, *MESSAGES, ("error", {"responses": dict(errors)})]:
        parts = [("sent", operation["requestBody"])] if "requestBody" in operation else []
        # Errors are the same wherever they are answered.
        parts += [(status, each) for status, each in operation["responses"].items() if "$ref" not in each]
        for what, part in parts:
            for kind, content in part.get("content", {}).items():
                if "json" in kind and not kind.endswith("l"):
                    given = [each["value"] for each in content.get("examples", {}).values()]
                    yield pytest.param(content["schema"], given or [content["example"]], id=f"{name} {what}")


@pytest.mark.parametrize(("shape", "given"), list(examples()))
def test_examples_are_what_they_are_examples_of(shape: dict[str, Any], given: list[Any]) -> None:
    validator = jsonschema_rs.validator_for(
        {**shape, "components": DOCUMENT["components"], "$schema": "https://json-schema.org/draft/2020-12/schema"},
        validate_formats=True,
    )
    assert given
    for example in given:
        assert [f"{list(error.instance_path)}: {error.message}" for error in validator.iter_errors(example)] == []


def test_what_is_sent_as_an_example_is_not_refused_for_its_shape() -> None:
    """The models refuse unknown fields; the shapes say so too."""
    loose = [
        name
        for name, shape in DOCUMENT["components"]["schemas"].items()
        if name.endswith(("In", "Patch")) and shape.get("additionalProperties") is not False
    ]
    assert loose == []


def test_shapes_and_their_fields_say_what_they_are() -> None:
    shapes = {name: shape for name, shape in DOCUMENT["components"]["schemas"].items() if name != "JsonValue"}
    assert [name for name, shape in shapes.items() if not shape.get("description")] == []
    fields = [
        (f"{name}.{field}", schema)
        for name, shape in shapes.items()
        for field, schema in shape.get("properties", {}).items()
    ]
    described = [name for name, schema in fields if schema.get("description") or "$ref" in schema]
    assert len(described) > 0.9 * len(fields)


def test_words_about_fields_are_about_fields_that_there_are() -> None:
    shapes = DOCUMENT["components"]["schemas"]
    names = {field for shape in shapes.values() for field in shape.get("properties", {})}
    places = {f"{name}.{field}" for name, shape in shapes.items() for field in shape.get("properties", {})}
    assert set(FIELDS) - names - places == set()


def test_files_are_documented_with_their_media_types() -> None:
    for path in ("verdicts", "tool-decisions", "interventions"):
        answer = DOCUMENT["paths"][f"/api/v1/{path}"]["get"]["responses"]["200"]
        assert set(answer["content"]) == {"application/json", "text/csv", "application/jsonl"}
        assert "Content-Disposition" in answer["headers"]
    assert set(DOCUMENT["paths"]["/api/v1/audit-events/export"]["get"]["responses"]["200"]["content"]) == {
        "application/jsonl"
    }


def test_policies_document_their_etag() -> None:
    for path, method in (
        ("/api/v1/policies", "post"),
        ("/api/v1/policies/{policy_id}", "get"),
        ("/api/v1/policies/{policy_id}", "patch"),
        ("/api/v1/policies/{policy_id}/versions/{number}", "patch"),
        ("/api/v1/policies/{policy_id}/rollback", "post"),
    ):
        operation = DOCUMENT["paths"][path][method]
        (good,) = [answer for status, answer in operation["responses"].items() if int(status) < 400]
        assert "ETag" in good["headers"], path
        if_match = [each["required"] for each in operation["parameters"] if each["name"] == "If-Match"]
        assert if_match == ([True] if method == "patch" or "rollback" in path else []), path


def test_every_message_that_webhooks_are_sent_is_documented() -> None:
    assert [name for name, _ in MESSAGES] == [*EVENT_TYPES, TEST_TYPE]
    for name, operation in MESSAGES:
        content = operation["requestBody"]["content"]["application/json"]
        shape = openapi.resolved(DOCUMENT, content["schema"])
        facts = openapi.resolved(DOCUMENT, shape["properties"]["data"])
        assert shape["properties"]["type"]["const"] == name == content["examples"]["example1"]["value"]["type"]
        # Whoever generates a receiver gets a type of its own for each.
        assert (
            set(facts["required"]) == set(facts["properties"]) == set(content["examples"]["example1"]["value"]["data"])
        )
        assert {each["name"] for each in operation["parameters"]} == set(
            headers_make(message_id=uuid7(), body=b"", secrets=[secret_make()], now=datetime.now(UTC))
        ) - {"Content-Type", "User-Agent"}
        assert set(operation["responses"]) == {"2XX", "410", "default"}
