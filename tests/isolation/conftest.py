"""What it takes to see row-level security stand alone."""

from __future__ import annotations

import pytest
from django.db import models

from tenants.managers import TenantManager
from tenants.models import Tenant


@pytest.fixture
def without_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Managers as Django makes them: no filter, no question about a context."""
    monkeypatch.setattr(TenantManager, "get_queryset", models.Manager.get_queryset)
    monkeypatch.setattr(type(Tenant.objects), "get_queryset", models.Manager.get_queryset)
