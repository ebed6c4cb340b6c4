"""Shapes that every part of the API shares."""

from __future__ import annotations

from typing import Generic, TypeVar

from ninja import Schema
from pydantic import BaseModel, ConfigDict, Field

from mirror_saas.pages import DEFAULT_LIMIT, MAX_LIMIT

Item = TypeVar("Item")


class Out(BaseModel):
    """An answer, read from the attributes of a model's row.

    Not ninja's Schema: that one reads attributes again while it sends, when the tenant's context is gone.
    """

    model_config = ConfigDict(from_attributes=True)


class PageOut(Out, Generic[Item]):
    """One page of a list. `next` is the `cursor` of the page after it, null on the last."""

    items: list[Item]
    next: str | None


class PageQuery(Schema):
    """Which page of a list."""

    cursor: str | None = Field(None, max_length=500, description="`next` of the page before; leave it out to start.")
    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="Rows per page.")
