"""Reading the current tenant's credentials, without their secrets."""

from __future__ import annotations

from uuid import UUID

from mirror_saas.pages import DEFAULT_LIMIT, Page
from supervision.errors import NotFound
from supervision.models import ProviderCredential
from supervision.selectors.pages import newest_page
from tenants.context import tenant_id_required
from tenants.sealing import sealed_field, unseal_text


class CredentialNotFound(NotFound):
    """The current tenant has no credential with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such credential.")


def credential_list(
    *, kind: str | None = None, cursor: str | None = None, limit: int = DEFAULT_LIMIT
) -> Page[ProviderCredential]:
    """Credentials, newest first. Raises InvalidInput and BadCursor."""
    credentials = ProviderCredential.objects.all()
    if kind is not None:
        credentials = credentials.filter(kind=kind)
    return newest_page(credentials, cursor=cursor, limit=limit)


def credential_get(*, credential_id: UUID) -> ProviderCredential:
    """One credential. Raises CredentialNotFound."""
    credential = ProviderCredential.objects.filter(id=credential_id).first()
    if credential is None:
        raise CredentialNotFound
    return credential


def credential_secret(credential: ProviderCredential) -> str:
    """The secret, for asking the server that it was given for. Raises SealBroken."""
    return unseal_text(
        bytes(credential.api_key_sealed),
        tenant_id=tenant_id_required("A credential's secret"),
        field=sealed_field("supervision_providercredential", "api_key_sealed", credential.id),
    )
