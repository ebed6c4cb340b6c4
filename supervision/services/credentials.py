"""Access that a tenant gives Mirror to servers: models that judge, voices, and forges where fixes are opened.

Plivo accounts are in `supervision.services.plivo_accounts`. Secrets are write-only: no code shows one again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Final, TypedDict, Unpack
from urllib.parse import urlsplit
from uuid import UUID

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.egress import EgressRefused, egress_check
from mirror_saas.errors import Conflict
from mirror_saas.ids import uuid7
from supervision.models import Agent, PolicyVersion, ProviderCredential
from supervision.selectors.credentials import credential_uses
from supervision.services.plivo_accounts import auth_token_clean, plivo_account_save
from tenants.context import tenant_id_required
from tenants.sealing import seal, sealed_field
from tenants.services.audit import auditevent_record, changes, snapshot

FORGE_APIS: Final = {
    ProviderCredential.Provider.GITHUB: "https://api.github.com",
    ProviderCredential.Provider.GITLAB: "https://gitlab.com/api/v4",
}
# A key goes into a header; what is no visible ASCII cannot.
_API_KEY: Final = re.compile(r"[!-~]{1,4000}")


class _Prices(TypedDict, total=False):
    prompt_price: Decimal | None
    completion_price: Decimal | None


class CredentialFields(TypedDict, total=False):
    """What of a credential is to change. `api_key` is the secret, whatever the provider calls it."""

    name: str
    base_url: str
    model: str
    api_key: str
    prompt_price: Decimal | None
    completion_price: Decimal | None


def credential_create(
    *,
    name: str,
    kind: ProviderCredential.Kind,
    base_url: str,
    model: str,
    api_key: str,
    **prices: Unpack[_Prices],
) -> ProviderCredential:
    """Access of the current tenant to an OpenAI-compatible server at `base_url`. The key is sealed, never shown again.

    `prompt_price` and `completion_price` are US dollars per million tokens of a language model, for what usage cost.
    Raises ValidationError naming the field.
    """
    credential = ProviderCredential(id=uuid7(), kind=kind.value)
    return _made(credential, name=name, base_url=base_url, model=model, api_key=api_key, **prices)


def forge_credential_create(
    *, name: str, provider: ProviderCredential.Provider, api_key: str, base_url: str | None = None
) -> ProviderCredential:
    """Access of the current tenant to GitHub or GitLab by an access token; `base_url` is the API of a server of one's
    own.

    Raises ValidationError naming `name`, `base_url` or `api_key`.
    """
    credential = ProviderCredential(id=uuid7(), kind=ProviderCredential.Kind.FORGE.value, provider=provider.value)
    return _made(credential, name=name, base_url=base_url or FORGE_APIS[provider], api_key=api_key)


def credential_add(
    *,
    kind: ProviderCredential.Kind,
    name: str,
    secret: str,
    base_url: str | None = None,
    model: str | None = None,
    account: str | None = None,
    provider: ProviderCredential.Provider | None = None,
    prompt_price: Decimal | None = None,
    completion_price: Decimal | None = None,
) -> ProviderCredential:
    """A credential of any kind; fields that another kind has must not be given. Raises ValidationError naming the
    field."""
    wanted = {
        ProviderCredential.Kind.PLIVO: {"account"},
        ProviderCredential.Kind.FORGE: {"provider", "base_url"},
    }.get(kind, {"base_url", "model"})
    may = {"prompt_price", "completion_price"} if kind == ProviderCredential.Kind.LLM else set()
    given = {
        "base_url": base_url,
        "model": model,
        "account": account,
        "provider": provider,
        "prompt_price": prompt_price,
        "completion_price": completion_price,
    }
    messages = {
        field: f"A credential of the kind `{kind.value}` has none; leave it out."
        for field, value in given.items()
        if value is not None and field not in wanted | may
    }
    missing = {field for field in wanted if given[field] is None} - ({"base_url"} if "provider" in wanted else set())
    messages |= {field: f"A credential of the kind `{kind.value}` needs it." for field in missing}
    if messages:
        raise ValidationError(messages)
    with secret_named():
        if account is not None:
            return plivo_account_save(auth_id=account, auth_token=secret, name=name, replace=False)
        if provider is not None:
            return forge_credential_create(name=name, provider=provider, api_key=secret, base_url=base_url)
        return credential_create(
            name=name,
            kind=kind,
            base_url=base_url or "",
            model=model or "",
            api_key=secret,
            prompt_price=prompt_price,
            completion_price=completion_price,
        )


@contextmanager
def secret_named() -> Iterator[None]:
    """Call the secret `secret` in errors, whatever its kind calls it, and an Auth ID `account`."""
    try:
        yield
    except ValidationError as error:
        names = {"api_key": "secret", "auth_token": "secret", "auth_id": "account"}
        raise ValidationError(
            {names.get(field, field): texts for field, texts in error.message_dict.items()}
        ) from error


def credential_update(*, credential: ProviderCredential, base_url: str, model: str, api_key: str) -> ProviderCredential:
    """Point a credential elsewhere. Raises ValidationError naming `base_url`, `model` or `api_key`."""
    return credential_change(credential_id=credential.id, base_url=base_url, model=model, api_key=api_key)


def credential_change(*, credential_id: UUID, **fields: Unpack[CredentialFields]) -> ProviderCredential:
    """Change a credential; what is not named stays as it is. New calls use it at once.

    Raises ProviderCredential.DoesNotExist and ValidationError naming the field: `api_key` too, when the server changes
    and no key is given for it, because whoever may name a server must not get a key by it that was given for another.
    """
    with transaction.atomic():
        credential = ProviderCredential.objects.select_for_update(no_key=True).get(id=credential_id)
        was, origin = snapshot(credential), _origin(credential.base_url)
        _fill(credential, **fields)
        if "api_key" not in fields and _origin(credential.base_url) != origin:
            raise ValidationError(
                {"api_key": "The server changes: give the key for it, the stored one is for another."}
            )
        credential.full_clean(exclude=["tenant"], validate_unique=False)
        before, after = changes(was, snapshot(credential))
        if after:
            credential.updated_at = timezone.now()
            credential.save()
            auditevent_record(action="credential.update", row=credential, before=before, after=after)
        return credential


def credential_delete(*, credential_id: UUID) -> None:
    """Forget a credential and its secret. Retired versions that named it name none any more.

    Raises ProviderCredential.DoesNotExist, and Conflict while a version that is no retired one or an agent uses it.
    """
    with transaction.atomic():
        # Whoever makes use of it now holds its row until they are done.
        credential = ProviderCredential.objects.select_for_update().get(id=credential_id)
        used = [str(use) for use in credential_uses(credential_ids=[credential.id])[credential.id]]
        if used:
            shown = ", ".join(used[:5]) + (", …" if len(used) > 5 else "")
            raise Conflict(f"This credential is in use ({shown}); give those another one first.")
        PolicyVersion.objects.filter(llm_credential=credential).update(llm_credential=None)
        PolicyVersion.objects.filter(fallback_credential=credential).update(fallback_credential=None)
        Agent.objects.filter(tts_credential=credential).update(tts_credential=None)
        auditevent_record(action="credential.delete", row=credential, before=snapshot(credential))
        credential.delete()


def credential_of_kind(
    credential_id: UUID | None, kind: ProviderCredential.Kind, *, field: str = ""
) -> ProviderCredential | None:
    """The credential, held against being deleted until the transaction ends; None for None. Raises ValidationError
    (`field`, or `llm_credential_id` for the kind `llm`, and so on)."""
    if credential_id is None:
        return None
    rows = ProviderCredential.objects.select_for_update(no_key=True).filter(id=credential_id, kind=kind)
    credential = rows.first()
    if credential is None:
        raise ValidationError({field or f"{kind}_credential_id": f"There is no such credential of the kind `{kind}`."})
    return credential


def base_url_clean(base_url: str) -> str:
    """`base_url` without surrounding space and trailing slash. Raises ValidationError (field `base_url`)."""
    base_url = base_url.strip().rstrip("/")
    try:
        parts = urlsplit(base_url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        usable = usable and re.fullmatch(r"[^\x00-\x20\x7f\\]+", base_url) is not None
    except ValueError:
        usable = False
    if not usable:
        raise ValidationError({"base_url": "Give a URL such as https://api.openai.com/v1, starting with http(s)://."})
    if parts.username or parts.password:
        raise ValidationError({"base_url": "Leave the login out of the URL; the API key has a field of its own."})
    if parts.query or parts.fragment:
        # It would be shown wherever the credential is listed, and keys stand in such queries.
        raise ValidationError({"base_url": "Leave out what follows ? or #; the API key has a field of its own."})
    try:
        egress_check(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    except EgressRefused as error:
        raise ValidationError({"base_url": f"{error}."}) from error
    return base_url


def _made(credential: ProviderCredential, **fields: Unpack[CredentialFields]) -> ProviderCredential:
    with transaction.atomic():
        _fill(credential, **fields)
        credential.full_clean(exclude=["tenant"], validate_unique=False)
        credential.save(force_insert=True)
        auditevent_record(action="credential.create", row=credential, after=snapshot(credential))
    return credential


def _fill(credential: ProviderCredential, **fields: Unpack[CredentialFields]) -> None:
    is_server = credential.kind in (ProviderCredential.Kind.LLM, ProviderCredential.Kind.TTS)
    is_account = credential.kind == ProviderCredential.Kind.PLIVO
    is_model = credential.kind == ProviderCredential.Kind.LLM
    fitting = {"model": is_server, "base_url": not is_account, "prompt_price": is_model, "completion_price": is_model}
    given: Mapping[str, object] = fields
    for name, fits in fitting.items():
        if given.get(name) is not None and not fits:
            raise ValidationError({name: f"A credential of the kind `{credential.kind}` has none; leave it out."})
    if "name" in fields:
        credential.name = fields["name"].strip()
    if "base_url" in fields:
        credential.base_url = base_url_clean(fields["base_url"])
    if "model" in fields:
        credential.model = fields["model"].strip()
    if "prompt_price" in fields:
        credential.prompt_price = fields["prompt_price"]
    if "completion_price" in fields:
        credential.completion_price = fields["completion_price"]
    if is_server and not credential.model:
        raise ValidationError({"model": "Name the model to ask there."})
    if "api_key" in fields:
        api_key = auth_token_clean(fields["api_key"], field="api_key") if is_account else fields["api_key"]
        if not _API_KEY.fullmatch(api_key):
            raise ValidationError({"api_key": "Give the key as the provider shows it: visible characters, no spaces."})
        credential.api_key_sealed = seal(
            api_key,
            tenant_id=tenant_id_required("Sealing a credential"),
            field=sealed_field("supervision_providercredential", "api_key_sealed", credential.id),
        )


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port
