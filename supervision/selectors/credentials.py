"""Reading the current tenant's credentials, without their secrets."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal
from uuid import UUID

from django.db.models import Q

from mirror_saas.pages import DEFAULT_LIMIT, Page
from supervision.errors import NotFound
from supervision.models import Agent, ModelDefaults, PolicyVersion, ProviderCredential
from supervision.selectors.pages import newest_page
from tenants.context import tenant_id_required
from tenants.sealing import sealed_field, unseal_text


class CredentialNotFound(NotFound):
    """The current tenant has no credential with this id."""

    def __init__(self) -> None:
        super().__init__("There is no such credential.")


@dataclass(frozen=True, slots=True)
class CredentialUse:
    """What needs a credential: a version of a policy (`number`), an agent, or the tenant's default models."""

    kind: Literal["version", "agent", "defaults"]
    name: str = ""
    object_id: UUID | None = None
    number: int = 0

    def __str__(self) -> str:
        match self.kind:
            case "version":
                return f"version {self.number} of {self.name}"
            case "agent":
                return f"agent {self.name}"
        return "the tenant's default models"


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


def credential_uses(*, credential_ids: Collection[UUID]) -> dict[UUID, list[CredentialUse]]:
    """What uses each of these credentials, so that it cannot be deleted. Retired versions, and what is archived, do not
    count."""
    found: dict[UUID, list[CredentialUse]] = {credential_id: [] for credential_id in credential_ids}
    versions = PolicyVersion.objects.filter(
        Q(llm_credential_id__in=credential_ids) | Q(fallback_credential_id__in=credential_ids),
        policy__archived_at=None,
    ).exclude(status=PolicyVersion.Status.RETIRED)
    for policy_id, name, number, *used in versions.order_by("policy__name", "number").values_list(
        "policy_id", "policy__name", "number", "llm_credential_id", "fallback_credential_id"
    ):
        for credential_id in set(used) & found.keys():
            found[credential_id].append(CredentialUse("version", name, policy_id, number))
    agents = Agent.objects.filter(tts_credential_id__in=credential_ids, archived_at=None)
    for agent_id, name, used_by_it in agents.order_by("name").values_list("id", "name", "tts_credential_id"):
        found[used_by_it].append(CredentialUse("agent", name, agent_id))
    for defaults in ModelDefaults.objects.values_list("llm_credential_id", "tts_credential_id"):
        for credential_id in set(defaults) & found.keys():
            found[credential_id].append(CredentialUse("defaults"))
    return found
