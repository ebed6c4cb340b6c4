"""What schemathesis does with each request before it is sent; it loads this in its own process."""

from __future__ import annotations

import json
import os
import uuid
from typing import Any

import schemathesis

# Names of fields that hold ids, and the tenant's objects that they can name.
KNOWN: dict[str, str] = json.loads(os.environ.get("FUZZ_KNOWN", "{}"))
_sent = 0


@schemathesis.hook
def before_call(context: Any, case: Any, **kwargs: Any) -> None:
    """From an address of its own, since wrong keys hold theirs up; once, unless it is about sending it twice."""
    global _sent
    _sent += 1
    case.headers["X-Forwarded-For"] = f"198.18.{_sent // 250 % 250}.{_sent % 250 + 1}"
    if case.meta is not None and case.meta.generation.mode.is_negative:
        return
    if case.headers.get("Idempotency-Key") and _sent % 4:
        case.headers["Idempotency-Key"] = str(uuid.UUID(int=_sent))
    if "If-Match" in case.headers and _sent % 4:
        case.headers["If-Match"] = "*"
    if isinstance(case.body, dict) and _sent % 4:
        case.body.update({name: KNOWN[name] for name in KNOWN if case.body.get(name) is not None})
