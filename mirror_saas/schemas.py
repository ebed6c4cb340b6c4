"""Shapes that every part of the API shares."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from ninja import Schema
from pydantic import BaseModel, ConfigDict, Field, field_validator

from mirror_saas.pages import DEFAULT_LIMIT, MAX_LIMIT

Item = TypeVar("Item")


class Out(BaseModel):
    """An answer, read from the attributes of a model's row.

    Not ninja's Schema: that one reads attributes again while it sends, when the tenant's context is gone.
    """

    model_config = ConfigDict(from_attributes=True)


class In(BaseModel):
    """What a request's body holds. A field that is not known is refused, never ignored: a typo would pass for done.

    Bodies can hold secrets, so no error repeats what was given.
    """

    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_stored(cls, value: Any) -> Any:
        if _unstorable(value):
            raise ValueError("Leave out U+0000 and half surrogate pairs; no text has them.")
        return value

    def given(self) -> dict[str, Any]:
        """The fields that the body named; a PATCH changes these and no others."""
        return {name: getattr(self, name) for name in self.model_fields_set}


def unset(**kwargs: Any) -> Any:
    """A field that a PATCH may leave out, and that is not null: what it is then is never looked at (`In.given`)."""
    return Field(default=None, json_schema_extra=_without_default, **kwargs)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


def _unstorable(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value or any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        return any(_unstorable(key) or _unstorable(inner) for key, inner in value.items())
    return isinstance(value, list) and any(map(_unstorable, value))


class PageOut(Out, Generic[Item]):
    """One page of a list. `next` is the `cursor` of the page after it, null on the last."""

    items: list[Item]
    next: str | None


class PageQuery(Schema):
    """Which page of a list."""

    cursor: str | None = Field(None, max_length=500, description="`next` of the page before; leave it out to start.")
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Rows per page.")
