"""The tenant's Plivo accounts: their auth tokens, which Plivo signs with. Write-only: no code shows one again."""

from __future__ import annotations

import re
from typing import Final

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from mirror_saas.ids import uuid7
from supervision.models import ProviderCredential
from tenants.context import tenant_id_required
from tenants.models import Tenant
from tenants.sealing import seal, sealed_field
from tenants.services.audit import auditevent_record, changes, snapshot

PLIVO_API: Final = "https://api.plivo.com/v1"
# Each token adds signatures to the header that agents get, whose length servers limit.
MAX_ACCOUNTS: Final = 4

_AUTH_ID: Final = re.compile(r"(MA|SA)[A-Z0-9]{18}")
_AUTH_TOKEN: Final = re.compile(r"[!-~]{16,200}")


def plivo_account_save(*, auth_id: str, auth_token: str, name: str = "", replace: bool = True) -> ProviderCredential:
    """Store the auth token of a Plivo account (`MA…`) or sub-account (`SA…`) of the current tenant.

    From then on the tenant's answer and status URLs take only what Plivo signed with one of the stored tokens, and
    Mirror signs towards its agents. A token that is stored for the same account already is replaced, unless `replace`
    is false: then that is an error. Raises ValidationError naming `auth_id`, `auth_token` or `name`; its text holds no
    token.
    """
    auth_id, name = auth_id.strip(), name.strip()
    if not _AUTH_ID.fullmatch(auth_id):
        raise ValidationError(
            {"auth_id": "Give the Auth ID that Plivo's console shows: MA or SA and 18 letters or digits."}
        )
    auth_token = auth_token_clean(auth_token, field="auth_token")
    with transaction.atomic():
        # One at a time in a tenant, or two could store the same account or go past the limit together.
        Tenant.objects.select_for_update(no_key=True).get()
        stored = ProviderCredential.objects.filter(kind=ProviderCredential.Kind.PLIVO)
        account = stored.filter(account=auth_id).first()
        if account is not None and not replace:
            raise ValidationError({"auth_id": f"{auth_id} is stored already; change that credential instead."})
        made, was = account is None, snapshot(account) if account is not None else {}
        if account is None:
            if stored.count() >= MAX_ACCOUNTS:
                raise ValidationError(
                    {"auth_id": f"There are {MAX_ACCOUNTS} Plivo accounts already; remove one first."}
                )
            account = ProviderCredential(
                id=uuid7(), kind=ProviderCredential.Kind.PLIVO.value, account=auth_id, base_url=PLIVO_API
            )
        if made or name:
            account.name = name or f"Plivo {auth_id}"
        account.updated_at = timezone.now()
        account.api_key_sealed = seal(
            auth_token,
            tenant_id=tenant_id_required("Sealing an auth token"),
            field=sealed_field("supervision_providercredential", "api_key_sealed", account.id),
        )
        account.full_clean(exclude=["tenant"])
        account.save(force_insert=made)
        before, after = changes(was, snapshot(account))
        auditevent_record(
            action="credential.create" if made else "credential.update",
            row=account,
            before=None if made else before,
            after=after,
        )
    return account


def auth_token_clean(auth_token: str, *, field: str) -> str:
    """A token without surrounding space. Raises ValidationError naming `field`; its text holds no token."""
    auth_token = auth_token.strip()
    if not _AUTH_TOKEN.fullmatch(auth_token):
        raise ValidationError(
            {field: "Give the Auth Token that Plivo's console shows: at least 16 characters, no spaces."}
        )
    return auth_token


def plivo_account_remove(*, auth_id: str) -> None:
    """Forget an account's auth token. With the last one, Plivo's requests are not checked any more.

    Raises ProviderCredential.DoesNotExist.
    """
    stored = ProviderCredential.objects.select_for_update(no_key=True).filter(kind=ProviderCredential.Kind.PLIVO)
    account = stored.filter(account=auth_id.strip()).first()
    if account is None:
        raise ProviderCredential.DoesNotExist(f"There is no Plivo account {auth_id!r}.")
    auditevent_record(action="credential.delete", row=account, before=snapshot(account))
    account.delete()
