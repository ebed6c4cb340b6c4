"""Asking the API as a program with a key does, with JSON both ways."""

from __future__ import annotations

import json
from typing import Any

from django.test import Client

from tests.factories import Tenancy


def ask(
    tenancy: Tenancy | None,
    method: str,
    path: str,
    body: Any = None,
    *,
    api_key: str | None = None,
    **headers: str,
) -> Any:
    """The answer to `method` `/api/v1<path>`; `If_Match="…"` and the like become headers. None asks without a key."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if tenancy is not None:
        sent["Authorization"] = f"Bearer {api_key or tenancy.api_key}"
    content = {} if body is None else {"data": json.dumps(body), "content_type": "application/json"}
    return Client(raise_request_exception=False).generic(method, f"/api/v1{path}", headers=sent, **content)


def errors(response: Any, status: int = 422) -> dict[str, list[str]]:
    """The fields that a problem names."""
    assert response.status_code == status, response.content
    assert response.headers["Content-Type"] == "application/problem+json"
    found: dict[str, list[str]] = response.json()["errors"]
    return found
