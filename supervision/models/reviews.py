"""Who looks at what in the review queue."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

from supervision.models.fields import tenant_key
from tenants.managers import TenantModel


class ReviewReservation(TenantModel):
    """An item of the review queue that one reviewer looks at, so that nobody else is given it until `expires_at`.

    It says nothing of the item, and is gone when the item is labelled, left for another, or long over.
    """

    # The intervention, tool decision or turn; ids are unique across the three.
    item_id = models.UUIDField()
    call = tenant_key("supervision.Call", related_name="review_reservations")
    reviewer_id = models.UUIDField()
    # As the audit log names them.
    reviewer = models.CharField(max_length=300)
    expires_at = models.DateTimeField()

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="reviewreservation_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "item_id"], name="reviewreservation_one_reviewer"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "reviewer_id"], name="reviewreservation_tenant_who"),
            models.Index(fields=["tenant", "call"], name="reviewreservation_tenant_call"),
        ]

    def __str__(self) -> str:
        return f"reserved until {self.expires_at:%H:%M}"
