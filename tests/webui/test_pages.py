"""Pages as a member and as a stranger."""

from __future__ import annotations

import pytest
from django.test import Client

from tests.factories import Tenancy, call_create

pytestmark = pytest.mark.django_db


def test_smoke(tenant: Tenancy, client: Client) -> None:
    client.force_login(tenant.users["alice"])
    response = client.get("/calls")
    assert response.status_code == 200, response.content
    call = call_create(tenant)
    response = client.get(f"/calls/{call.id}")
    assert response.status_code == 200
