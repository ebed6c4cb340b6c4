"""Column types with a default in the database too.

The recorder writes calls with SQL of its own, so what may be left out must be filled in by PostgreSQL.
"""

from __future__ import annotations

from typing import Any

from django.db import models


def text_column(**kwargs: Any) -> models.TextField[str, str]:
    """Text that is empty when unknown."""
    return models.TextField(blank=True, default="", db_default="", **kwargs)


def word_column(max_length: int, **kwargs: Any) -> models.CharField[str, str]:
    """A short word (a state, a reason code) that is empty when unknown."""
    return models.CharField(max_length=max_length, blank=True, default="", db_default="", **kwargs)


def count_column(**kwargs: Any) -> models.IntegerField[int, int]:
    """A counter from 0."""
    return models.IntegerField(default=0, db_default=0, **kwargs)


def flag_column(**kwargs: Any) -> models.BooleanField[bool, bool]:
    """True or false, false when unsaid."""
    return models.BooleanField(default=False, db_default=False, **kwargs)


def ms_column(**kwargs: Any) -> models.BigIntegerField[int | None, int | None]:
    """A duration or position in whole milliseconds; NULL when it was never known."""
    return models.BigIntegerField(null=True, blank=True, **kwargs)


def list_column(**kwargs: Any) -> models.JSONField[Any, Any]:
    """A JSON list, empty when unsaid."""
    return models.JSONField(default=list, db_default=models.Value([], models.JSONField()), **kwargs)


def tenant_key(to: str, *, related_name: str, null: bool = False, **kwargs: Any) -> models.ForeignKey[Any, Any]:
    """A foreign key inside one tenant. The constraint is (tenant_id, …) and is made in the migration with its
    ON DELETE rule, because Django has no composite foreign keys; so does the index, which leads with the tenant."""
    return models.ForeignKey(
        to,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        null=null,
        blank=null,
        related_name=related_name,
        **kwargs,
    )
