"""Lists as files: JSON lines and CSV, made page by page while they are sent, so that their size needs no memory.

Whoever asks with `Accept: text/csv` or `application/jsonl`, or with `format=`, gets every row that the filters let
through. What comes after the first byte cannot become an error message any more: a database that fails then breaks the
connection off, which a client sees.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final, Literal

from asgiref.sync import sync_to_async
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, StreamingHttpResponse
from ninja import Schema
from ninja.responses import NinjaJSONEncoder
from pydantic import BaseModel, Field

CSV: Final = "text/csv"
JSON_LINES: Final = "application/jsonl"
Format = Literal["json", "csv", "jsonl"]
_TYPES: Final[dict[str, Format]] = {
    "application/json": "json",
    CSV: "csv",
    JSON_LINES: "jsonl",
    "application/x-ndjson": "jsonl",
}
# A spreadsheet takes a cell that begins so for a formula; the wide forms are typed in East Asia.
_FORMULA: Final = frozenset("=+-@\t\r\n＝＋－＠")


class ExportQuery(Schema):
    """As which kind of document."""

    format: Format | None = Field(
        None,
        description="`csv` and `jsonl` give every row in one stream; `cursor` and `limit` do not count then. "
        "Without it, the `Accept` header decides.",
    )


def export_content(row: str) -> dict[str, Any]:
    """`openapi_extra` of an operation that also exports; `row` says what a row is."""
    return {
        "responses": {
            200: {
                "content": {
                    CSV: {"schema": {"type": "string", "description": f"{row} a line, after a line of names."}},
                    JSON_LINES: {"schema": {"type": "string", "description": f"{row} a line, as in `items`."}},
                }
            }
        }
    }


def export_format(request: HttpRequest, wanted: Format | None) -> Format:
    """What to answer with: what the query says, else what the Accept header likes best, else JSON."""
    if wanted is not None:
        return wanted
    preferred = request.get_preferred_type(list(_TYPES))
    return _TYPES[preferred] if preferred is not None else "json"


def export_response(
    request: HttpRequest, *, kind: Format, name: str, columns: type[BaseModel], batches: Iterator[Sequence[BaseModel]]
) -> StreamingHttpResponse:
    """`batches` as a file called `name`. Each batch is fetched while the one before it is sent, in a thread under ASGI,
    so `batches` has to set its tenant's context by itself for each."""
    parts = _csv(list(columns.model_fields), batches) if kind == "csv" else _json_lines(batches)
    response = StreamingHttpResponse(
        in_threads(parts) if isinstance(request, ASGIRequest) else parts,
        content_type=f"{CSV}; charset=utf-8" if kind == "csv" else JSON_LINES,
        headers={
            "Content-Disposition": f'attachment; filename="{name}.{kind}"',
            "Cache-Control": "no-store",
        },
    )
    return response


def cell(value: Any) -> str:
    """A value as a cell. One that a spreadsheet would run as a formula begins with an apostrophe instead."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # Blanks before it do not keep every spreadsheet from running it.
    first = value.lstrip(" \u00a0\u3000")[:1]
    return f"'{value}" if first in _FORMULA and first else value


def _csv(columns: list[str], batches: Iterator[Sequence[BaseModel]]) -> Iterator[str]:
    yield _csv_lines([columns])
    for batch in batches:
        rows = (json.loads(_json(row)) for row in batch)
        yield _csv_lines([[cell(row[column]) for column in columns] for row in rows])


def _csv_lines(rows: list[list[str]]) -> str:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue()


def _json_lines(batches: Iterator[Sequence[BaseModel]]) -> Iterator[str]:
    for batch in batches:
        yield "".join(_json(row) + "\n" for row in batch)


def _json(row: BaseModel) -> str:
    # As pages have it.
    return json.dumps(row.model_dump(), cls=NinjaJSONEncoder, ensure_ascii=False, separators=(",", ":"))


async def in_threads(parts: Iterator[str]) -> AsyncIterator[str]:
    """The parts, each made in the request's database thread: Django would otherwise collect them all first."""
    while part := await sync_to_async(_next)(parts):
        yield part


def _next(parts: Iterator[str]) -> str:
    return next(parts, "")
