"""Shapes that every part of the API shares."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from types import UnionType
from typing import Annotated, Any, Generic, TypeVar, Union, get_args, get_origin

from ninja import Schema
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from mirror_saas.pages import DEFAULT_LIMIT, MAX_LIMIT

Item = TypeVar("Item")


_DATE = re.compile(r"\d{4}-\d\d-\d\d[Tt ]")
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def _storable(text: str) -> str:
    if "\x00" in text:
        raise ValueError("Leave out the character U+0000.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("This is no Unicode text: it has half of a surrogate pair.") from error
    return text


def _written(value: Any) -> Any:
    # pydantic would take 1767225600, and "1767225600", for seconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and _DATE.match(value)):
        return value
    raise ValueError("Give a time as RFC 3339 has it, such as 2026-03-04T12:00:00Z.")


def _written_day(value: Any) -> Any:
    if isinstance(value, date) or (isinstance(value, str) and _DAY.fullmatch(value)):
        return value
    raise ValueError("Give a day such as 2026-03-04.")


def _in_utc(moment: datetime) -> datetime:
    # PostgreSQL knows fewer offsets than Python, and the years end for both.
    try:
        return moment.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("Give a time between the years 1 and 9999.") from error


Text = Annotated[str, AfterValidator(_storable)]
"""Text that PostgreSQL can store and compare: without U+0000 and halves of surrogate pairs."""

Moment = Annotated[AwareDatetime, BeforeValidator(_written), AfterValidator(_in_utc)]
"""A time as RFC 3339 has it, with its zone; in UTC from here on."""


Day = Annotated[date, BeforeValidator(_written_day)]
"""A day as RFC 3339 has it."""


class Out(BaseModel):
    """An answer, read from the attributes of a model's row.

    Not ninja's Schema: that one reads attributes again while it sends, when the tenant's context is gone.
    """

    model_config = ConfigDict(from_attributes=True, use_attribute_docstrings=True)


class In(BaseModel):
    """The body of a request. A field that there is not is refused by name: it may be a slip of the pen.

    Bodies can hold secrets, so no error repeats what was given.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _as_json_has_it(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic would take "5" and false for numbers, and 0 for false.
        kinds = _kinds(cls.model_fields[info.field_name or ""].annotation)
        if bool in kinds and not isinstance(value, bool | None):
            raise ValueError("Give true or false.")
        if kinds & {int, float} and (isinstance(value, bool) or (isinstance(value, str) and str not in kinds)):
            raise ValueError("Give a number.")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        _all_storable(value)
        return value

    def given(self) -> dict[str, Any]:
        """The fields that the body named; a PATCH changes these and no others."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def _kinds(annotation: Any) -> set[Any]:
    """What an annotation allows, its parts if it is a union."""
    return set(get_args(annotation)) if get_origin(annotation) in (Union, UnionType) else {annotation}


def unset(**kwargs: Any) -> Any:
    """A field that a PATCH may leave out, and that is not null: what it is then is never looked at (`In.given`)."""
    return Field(default=None, json_schema_extra=_without_default, **kwargs)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _all_storable(value: Any) -> None:
    if isinstance(value, str):
        _storable(value)
    elif isinstance(value, dict):
        for key, inner in value.items():
            _all_storable(key)
            _all_storable(inner)
    elif isinstance(value, list):
        for inner in value:
            _all_storable(inner)


class PageOut(Out, Generic[Item]):
    """One page of a list. `next` is the `cursor` of the page after it, null on the last."""

    # Its fields have none; for each kind of page pydantic would look through the sources of all that is being imported.
    model_config = ConfigDict(use_attribute_docstrings=False)

    items: list[Item]
    next: str | None


class PageQuery(Schema):
    """Which page of a list."""

    cursor: str | None = Field(None, max_length=500, description="`next` of the page before; leave it out to start.")
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Rows per page.")
