"""Signing up: somebody without an invitation makes an account, and a tenant of their own.

A link is signed and kept nowhere: it says which address it proves, and until when. It makes one account, because an
address has one. Without a mail server nothing can prove addresses, so then any address is taken; in production a mail
server is required for `MIRROR_SIGN_UP=open`.
"""

from __future__ import annotations

import re
import secrets
import unicodedata
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from django.conf import settings
from django.core import signing
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.urls import reverse
from django.utils import timezone

from tenants.context import tenant_context
from tenants.models import User
from tenants.names import name_clean
from tenants.roles import Role
from tenants.selectors.memberships import membership_get
from tenants.selectors.tenants import TenantRef
from tenants.services.accounts import account_create
from tenants.services.invitations import AddressUnproven, address_proof_needed
from tenants.services.mails import mail_make
from tenants.services.memberships import membership_create
from tenants.services.people_audit import personevent_record
from tenants.services.tenants import tenant_create

VALID_FOR: Final = timedelta(hours=24)
SLUG_CHARS: Final = 40
# Of a slug that is taken; another try is for two who take the same one at the same moment.
_SLUG_TRIES: Final = 4


class SignUpClosed(PermissionError):
    """The operator lets nobody in who is not invited."""

    def __init__(self) -> None:
        super().__init__("Nobody signs up here by themselves. Ask somebody who uses this Mirror to invite you.")


class SignUpLinkInvalid(ValueError):
    """A link is too old, or none of ours."""

    def __init__(self) -> None:
        super().__init__("This link does not work any more. Ask for a new one.")


@dataclass(frozen=True, slots=True)
class SignUp:
    """What a token stands for. `proven`: whoever has it reads what is mailed to the address."""

    email: str
    proven: bool
    has_account: bool


def sign_up_is_open() -> bool:
    """Whether people who are not invited may sign up."""
    return bool(settings.MIRROR.sign_up == "open")


def sign_up_required() -> None:
    """Raises SignUpClosed unless people may sign up."""
    if not sign_up_is_open():
        raise SignUpClosed


def sign_up_token(*, email: str, proven: bool, now: datetime | None = None) -> str:
    """What lets whoever has it make the account of `email`, a clean address."""
    ends = (now or timezone.now()) + VALID_FOR
    return _signer().sign_object([email, proven, int(ends.timestamp())])


def sign_up_of(token: str, *, now: datetime | None = None) -> SignUp:
    """What a token stands for. Raises SignUpLinkInvalid."""
    try:
        email, proven, ends = _signer().unsign_object(token)
    except (signing.BadSignature, ValueError) as error:
        raise SignUpLinkInvalid from error
    if datetime.fromtimestamp(ends, UTC) <= (now or timezone.now()):
        raise SignUpLinkInvalid
    return SignUp(email=email, proven=proven, has_account=User.objects.filter(email=email).exists())


def sign_up_mail(*, email: str) -> None:
    """Mail `email`, a clean address, the link to go on with; or, when it has an account, that it has one.

    Nothing is sent when sign-up was closed meanwhile. Raises what the mail server answers: SMTPException or OSError.
    """
    if not sign_up_is_open():
        return
    if User.objects.filter(email=email).exists():
        base = settings.MIRROR.public_url
        told = {
            "email": email,
            "link": base + reverse("webui:sign_in"),
            "forgot": base + reverse("webui:forgot_password"),
        }
        mail_make(to=email, template="tenants/mail/sign_up_known", told=told).send()
        return
    path = reverse("webui:sign_up_link", kwargs={"token": sign_up_token(email=email, proven=True)})
    link = settings.MIRROR.public_url + path
    invited: dict[str, str | int] = {"email": email, "link": link, "hours": VALID_FOR // timedelta(hours=1)}
    mail_make(to=email, template="tenants/mail/sign_up", told=invited).send()


@transaction.atomic
def sign_up(
    *, token: str, user_id: UUID, name: str, tenant_name: str, password: str, now: datetime | None = None
) -> tuple[User, TenantRef]:
    """Make the account of the token's address, `user_id` its id, and a tenant that the person owns.

    Raises SignUpClosed, SignUpLinkInvalid, AddressUnproven, and ValidationError (fields `name`, `tenant_name`,
    `password`, and `email` when there is an account already).
    """
    sign_up_required()
    found = sign_up_of(token, now=now)
    if address_proof_needed(proven=found.proven):
        raise AddressUnproven
    # Looked at first, so that everything that is wrong is said at once.
    messages: dict[str, list[str]] = {}
    for field, given in (("name", name), ("tenant_name", tenant_name)):
        try:
            name_clean(given, field=field)
        except ValidationError as error:
            messages |= error.message_dict
    if messages:
        raise ValidationError(messages)
    user = account_create(user_id=user_id, email=found.email, name=name, password=password)
    tenant = _tenant_of(user, tenant_name)
    personevent_record(user=user, action="user.sign_up", after={"address_proven": found.proven})
    return user, tenant


@transaction.atomic
def tenant_add(*, user: User, tenant_id: UUID, tenant_name: str) -> TenantRef:
    """A tenant that `user`, who has an account, owns; `tenant_id` becomes its id, so that asking twice makes one.

    Raises SignUpClosed and ValidationError (`tenant_name`).
    """
    sign_up_required()
    return _tenant_of(user, tenant_name, tenant_id)


def _tenant_of(user: User, name: str, tenant_id: UUID | None = None) -> TenantRef:
    name = name_clean(name, field="tenant_name")
    slug = _slug(name)
    for left in reversed(range(_SLUG_TRIES)):
        made = None if tenant_id is None else membership_get(user_id=user.pk, tenant_id=tenant_id)
        if made is not None and made.tenant.id == tenant_id:
            return made.tenant
        try:
            with transaction.atomic():
                tenant = tenant_create(slug=slug, name=name, tenant_id=tenant_id)
            break
        except (ValidationError, IntegrityError):
            # Walls hide other tenants' slugs; one that is taken gets letters of its own.
            if not left:
                raise
            slug = f"{_slug(name)}-{secrets.token_hex(3)}"
    with tenant_context(tenant.id):
        membership_create(user=user, role=Role.OWNER)
    return tenant


def _slug(name: str) -> str:
    """A name as it stands in URLs: `Zoë’s Café` is `zoes-cafe`."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain.replace("'", "")).strip("-")[:SLUG_CHARS].strip("-") or "tenant"


def _signer() -> signing.Signer:
    return signing.Signer(salt="tenants.sign_up", sep=".")
