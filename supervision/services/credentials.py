"""Providers that a tenant judges and speaks with."""

from __future__ import annotations

from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import ProviderCredential
from tenants.context import tenant_id_required
from tenants.sealing import seal, sealed_field
from tenants.services.audit import auditevent_record, changes, snapshot


def credential_create(
    *, name: str, kind: ProviderCredential.Kind, base_url: str, model: str, api_key: str
) -> ProviderCredential:
    """Access of the current tenant to an OpenAI-compatible server at `base_url`. The key is sealed, never shown again.

    Raises ValidationError naming `base_url`, `model` or `name`.
    """
    credential = ProviderCredential(id=uuid7(), name=name, kind=kind.value)
    _fill(credential, base_url=base_url, model=model, api_key=api_key)
    credential.full_clean(exclude=["tenant"])
    credential.save(force_insert=True)
    auditevent_record(action="credential.create", row=credential, after=snapshot(credential))
    return credential


def credential_update(*, credential: ProviderCredential, base_url: str, model: str, api_key: str) -> ProviderCredential:
    """Point a credential elsewhere. Raises ValidationError naming `base_url` or `model`."""
    was = snapshot(credential)
    _fill(credential, base_url=base_url, model=model, api_key=api_key)
    credential.updated_at = timezone.now()
    credential.full_clean(exclude=["tenant"])
    credential.save()
    before, after = changes(was, snapshot(credential))
    auditevent_record(action="credential.update", row=credential, before=before, after=after)
    return credential


def _fill(credential: ProviderCredential, *, base_url: str, model: str, api_key: str) -> None:
    credential.base_url = base_url_clean(base_url)
    credential.model = model.strip()
    if not credential.model:
        raise ValidationError({"model": "Name the model to ask there."})
    credential.api_key_sealed = seal(
        api_key,
        tenant_id=tenant_id_required("Sealing a credential"),
        field=sealed_field("supervision_providercredential", "api_key_sealed", credential.id),
    )


def base_url_clean(base_url: str) -> str:
    """`base_url` without surrounding space and trailing slash. Raises ValidationError (field `base_url`)."""
    base_url = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise ValidationError({"base_url": "Give a URL such as https://api.openai.com/v1, starting with http(s)://."})
    if parts.username or parts.password:
        raise ValidationError({"base_url": "Leave the login out of the URL; the API key has a field of its own."})
    return base_url
