"""What pages say of a credential."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from urllib.parse import urlsplit
from uuid import UUID

from django.urls import reverse

from supervision.models import ProviderCredential
from supervision.selectors.credentials import CredentialUse
from webui.presenters.pieces import Badge

Kind = ProviderCredential.Kind

# What each kind is for, in the words of the page.
KIND_WORDS: dict[Kind, tuple[str, str]] = {
    Kind.LLM: ("Language model", "Judges what agents say and do, and writes corrections."),
    Kind.TTS: ("Voice", "Speaks Mirror’s corrections, where an agent does not speak them itself."),
    Kind.PLIVO: ("Plivo account", "Proves that calls come from Plivo, and ends, transfers and speaks into them."),
    Kind.FORGE: ("Forge", "GitHub or GitLab, where fixes are opened as pull or merge requests."),
}
_ICONS = {Kind.LLM: "mirror", Kind.TTS: "wave", Kind.PLIVO: "phone", Kind.FORGE: "tool"}


@dataclass(frozen=True, slots=True)
class UseLink:
    """Something that needs a credential, and its page; empty when the viewer may not see that."""

    text: str
    url: str


@dataclass(frozen=True, slots=True)
class CredentialRow:
    """A credential; `what` is its model, account or forge, `server` the host that it is for."""

    id: UUID
    name: str
    kind: Badge
    what: str
    server: str
    base_url: str
    prices: str
    uses: tuple[UseLink, ...]
    is_account: bool
    """A Plivo account, which no version or agent names."""
    unpriced: bool
    """A model that is used and has no price: what calls cost is not known."""
    created_at: datetime
    updated_at: datetime


def credential_rows(
    credentials: Iterable[ProviderCredential],
    *,
    uses: Mapping[UUID, Sequence[CredentialUse]],
    capabilities: frozenset[str],
) -> tuple[CredentialRow, ...]:
    """For a viewer with `capabilities`."""
    return tuple(_row(credential, uses.get(credential.id, ()), capabilities) for credential in credentials)


def _row(credential: ProviderCredential, uses: Sequence[CredentialUse], capabilities: frozenset[str]) -> CredentialRow:
    kind = Kind(credential.kind)
    prices = _prices(credential.prompt_price, credential.completion_price)
    what = credential.model or credential.account
    if kind == Kind.FORGE:
        what = ProviderCredential.Provider(credential.provider).label
    return CredentialRow(
        id=credential.id,
        name=credential.name,
        kind=Badge(KIND_WORDS[kind][0], _ICONS[kind]),
        what=what,
        server=urlsplit(credential.base_url).netloc,
        base_url=credential.base_url,
        prices=prices,
        uses=tuple(_use(use, capabilities) for use in uses),
        is_account=kind == Kind.PLIVO,
        unpriced=kind == Kind.LLM and bool(uses) and not prices,
        created_at=credential.created_at,
        updated_at=credential.updated_at,
    )


def _use(use: CredentialUse, capabilities: frozenset[str]) -> UseLink:
    match use.kind:
        case "version":
            return UseLink(f"{use.name}, version {use.number}", reverse("webui:policy", args=[use.object_id]))
        case "agent":
            return UseLink(use.name, reverse("webui:agent", args=[use.object_id]))
    return UseLink("Default models", reverse("webui:settings_models") if "admin" in capabilities else "")


def _prices(prompt: Decimal | None, completion: Decimal | None) -> str:
    if prompt is None or completion is None:
        return ""
    return f"${_plain(prompt)} in, ${_plain(completion)} out"


def _plain(price: Decimal) -> str:
    """With two places, and more only when there are some: 0.60, 0.125."""
    plain = price.normalize()
    return f"{plain:.{max(2, -int(plain.as_tuple().exponent))}f}"
