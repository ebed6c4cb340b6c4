"""Secrets that the next page shows, once: until then they wait in the session, sealed for the tenant and the thing
that they open."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from uuid import UUID

from django.contrib import messages
from django.http import HttpRequest

from tenants.context import tenant_id_required
from tenants.sealing import SealBroken, seal, sealed_field, unseal_text

_PREFIX = "shown_once."


def shown_once_keep(request: HttpRequest, *, kind: str, object_id: UUID, secrets: Mapping[str, str]) -> None:
    """Keep `secrets` of the thing `object_id` for the page that shows them. Newer ones of the same `kind` replace them.

    The session is stored at once: whoever sent a form twice may be back before this answer is out.
    """
    sealed = seal(json.dumps(dict(secrets)), tenant_id=tenant_id_required("A secret"), field=_field(kind, object_id))
    request.session[_PREFIX + kind] = {"id": str(object_id), "sealed": base64.b64encode(sealed).decode()}
    request.session.save()


def shown_once_take(request: HttpRequest, *, kind: str, object_id: UUID) -> dict[str, str]:
    """What was kept of the thing `object_id`, for the last time; nothing when there is none, or of another thing.

    Only for a page that is read: HEAD shows nothing.
    """
    found = shown_again(request, kind=kind, object_id=object_id)
    if found:
        del request.session[_PREFIX + kind]
    return found


def shown_again(request: HttpRequest, *, kind: str, object_id: UUID) -> dict[str, str]:
    """The same, and it stays: for what is no secret of its own, until something else of the kind is kept."""
    kept = request.session.get(_PREFIX + kind)
    if request.method != "GET" or not isinstance(kept, dict) or kept.get("id") != str(object_id):
        return {}
    try:
        opened = unseal_text(
            base64.b64decode(str(kept.get("sealed"))),
            tenant_id=tenant_id_required("A secret"),
            field=_field(kind, object_id),
        )
    except SealBroken:
        del request.session[_PREFIX + kind]
        messages.error(request, "What was to be shown once cannot be read any more. Make another.")
        return {}
    return {str(name): str(value) for name, value in json.loads(opened).items()}


def _field(kind: str, object_id: UUID) -> str:
    return sealed_field("django_session", _PREFIX + kind, object_id)
