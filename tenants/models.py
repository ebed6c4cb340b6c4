"""Who may do what: people, the tenants they belong to, and the keys that programs use."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.postgres.fields import ArrayField
from django.core.validators import RegexValidator
from django.db import models
from django.db.models.functions import Lower
from django.utils import timezone

from mirror_saas.ids import uuid7
from tenants.context import tenant_id_required
from tenants.managers import TenantModel
from tenants.roles import Role
from tenants.sealing import SealedField

SLUG_PATTERN = r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\Z"


class UserManager(BaseUserManager["User"]):
    """People are found by e-mail address, whatever its case."""

    def get_by_natural_key(self, username: str | None) -> User:
        return self.get(email=(username or "").strip().lower())

    def create_user(self, *, email: str, password: str | None = None, name: str = "") -> User:
        """A new person who can sign in with `password`; without one, sign-in by password is off."""
        user = self.model(email=email.strip().lower(), name=name)
        user.set_password(password)
        user.save(using=self._db)
        return user


class User(AbstractBaseUser):
    """A person. People belong to no tenant; memberships say what they may see."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    email = models.EmailField(unique=True)
    name = models.CharField(max_length=200, blank=True, default="")
    is_active = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects: ClassVar[UserManager] = UserManager()

    USERNAME_FIELD = "email"
    EMAIL_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.CheckConstraint(condition=models.Q(email=Lower("email")), name="user_email_is_lower_case"),
        ]

    def clean(self) -> None:
        super().clean()
        self.email = self.email.strip().lower()

    def __str__(self) -> str:
        return self.email


class CurrentTenantManager(models.Manager["Tenant"]):
    """The current tenant's own row, and no other."""

    def get_queryset(self) -> models.QuerySet[Tenant]:
        return super().get_queryset().filter(id=tenant_id_required("A query of Tenant"))


class Tenant(models.Model):
    """A company whose calls are supervised. Row-level security shows each tenant its own row only."""

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    slug = models.CharField(
        max_length=63,
        unique=True,
        validators=[
            RegexValidator(SLUG_PATTERN, "Use 1 to 63 lower-case letters, digits and hyphens, no hyphen at the ends.")
        ],
    )
    name = models.CharField(max_length=200)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    objects: ClassVar[CurrentTenantManager] = CurrentTenantManager()

    def __str__(self) -> str:
        return self.slug


class Membership(TenantModel):
    """A person in a tenant, with the one role they have there."""

    # The constraint, with its cascade, is SQL in the migration: row-level security hides other tenants'
    # memberships from Django when a person is deleted, but not from the foreign key.
    user = models.ForeignKey(User, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+")
    role = models.CharField(max_length=16, choices=Role.choices)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="membership_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "user"], name="membership_tenant_user"),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="membership_role"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} {self.role}"


class Invitation(TenantModel):
    """A person who may become a member: an email, a role, and the hash of the token that the link carries.

    The mail's link carries a second part, which proves that whoever opens it reads the address's mail. Neither is kept:
    both are derived from `token_nonce` and this installation's secret key (tenants.services.invitations), so that
    whoever sends the mail can make them and the database alone cannot.
    """

    class MailState(models.TextChoices):
        """What became of the mail with the newest token."""

        WAITING = "waiting", "On its way"
        SENT = "sent", "Sent"
        FAILED = "failed", "Not delivered"
        NOT_QUEUED = "not_queued", "Not sent"

    class Inviter(models.TextChoices):
        USER = "user", "A person"
        API_KEY = "api_key", "An API key"
        SYSTEM = "system", "The operator"

    email = models.EmailField()
    role = models.CharField(max_length=16, choices=Role.choices)
    token_hash = models.BinaryField(max_length=32)
    proof_hash = models.BinaryField(max_length=32)
    token_nonce = models.BinaryField(max_length=32)
    # Whoever made or last resent it: the role is theirs to give at acceptance, or it is void. The constraint to the
    # user is SQL in the migration, as that of Membership.
    invited_by_kind = models.CharField(max_length=16, choices=Inviter.choices)
    invited_by = models.ForeignKey(
        User, null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False
    )
    invited_by_key = models.ForeignKey(
        "tenants.ApiKey", null=True, on_delete=models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False
    )
    mail_state = models.CharField(max_length=16, choices=MailState.choices, default=MailState.WAITING)
    mailed_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField()
    accepted_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="invitation_tenant_id"),
            models.UniqueConstraint(
                fields=["tenant", "email"],
                condition=models.Q(accepted_at=None, revoked_at=None),
                name="invitation_tenant_pending",
            ),
            models.CheckConstraint(condition=models.Q(role__in=Role.values), name="invitation_role"),
            models.CheckConstraint(condition=models.Q(email=Lower("email")), name="invitation_email_is_lower_case"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            # Looked up before the tenant is known.
            models.Index(fields=["token_hash"], name="invitation_token_hash"),
            models.Index(fields=["tenant", "invited_by"], name="invitation_tenant_inviter"),
            models.Index(fields=["tenant", "invited_by_key"], name="invitation_tenant_key"),
        ]

    def __str__(self) -> str:
        return f"{self.email} {self.role}"


class ApiKey(TenantModel):
    """A key `mk_<prefix>_<secret>` of a program. Only a hash of the secret is kept; the key is shown once.

    It belongs to the tenant: it goes on when the person who made it leaves, until somebody revokes it.
    """

    name = models.CharField(max_length=200)
    prefix = models.CharField(max_length=16, db_index=True)
    secret_hash = models.BinaryField(max_length=32)
    scopes: models.Field[Any, list[str]] = ArrayField(models.CharField(max_length=32), default=list)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)
    last_used_at = models.DateTimeField(null=True, blank=True)
    last_used_ip = models.CharField(max_length=64, blank=True, default="")
    # Fewer requests a minute than the tenant's keys may otherwise make; NULL: as many.
    requests_per_minute = models.IntegerField(null=True, blank=True)
    # Who made it, in the words of the audit log; no foreign keys, because it may outlive them.
    created_by_kind = models.CharField(max_length=16, blank=True, default="")
    created_by_id = models.UUIDField(null=True, blank=True)
    created_by_label = models.CharField(max_length=300, blank=True, default="")

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="apikey_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "prefix"], name="apikey_tenant_prefix"),
        ]

    def __str__(self) -> str:
        return f"mk_{self.prefix}_…"


class DataKey(TenantModel):
    """A key that the tenant's secrets are sealed with, wrapped by the key from the environment (tenants.envelope).

    The newest one seals. Older ones still unseal until `rotate_keys` has sealed everything anew and retired them.
    """

    number = models.IntegerField()
    wrapped = models.BinaryField(max_length=69)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    retired_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="datakey_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "number"], name="datakey_tenant_number"),
        ]

    def __str__(self) -> str:
        return f"data key {self.number}"


class KeyCheck(models.Model):
    """The check value of a key-encryption key that data keys are wrapped with: a start with another key fails.

    It belongs to the installation, not to a tenant, and tells nothing of the key.
    """

    key_id = models.CharField(max_length=16, primary_key=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    def __str__(self) -> str:
        return self.key_id


class AuditEvent(TenantModel):
    """Who did what to what. A link of the tenant's hash chain; mirror_app may add events and read them, no more.

    `tenants.services.audit` writes and verifies them. `before` and `after` are JSON as text, because the hash is of
    exactly these characters and jsonb would rewrite numbers.
    """

    # 1 for the tenant's first event, without gaps.
    seq = models.BigIntegerField()
    at = models.DateTimeField()
    actor_kind = models.CharField(max_length=16)
    actor_id = models.UUIDField(null=True)
    actor_label = models.CharField(max_length=300)
    action = models.CharField(max_length=64)
    object_type = models.CharField(max_length=32)
    object_id = models.CharField(max_length=64)
    object_label = models.CharField(max_length=300)
    before = models.TextField(null=True)  # NULL: there was nothing before
    after = models.TextField(null=True)  # NULL: there is nothing any more
    ip = models.CharField(max_length=64)
    user_agent = models.CharField(max_length=300)
    session = models.CharField(max_length=16)
    request_id = models.CharField(max_length=36)
    # SHA-256 of the event before (zeros for the first) and of this one, which contains the former.
    prev_hash = models.BinaryField(max_length=32)
    hash = models.BinaryField(max_length=32)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="auditevent_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "seq"], name="auditevent_tenant_seq"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "object_type", "object_id", "seq"], name="auditevent_tenant_object"),
            models.Index(fields=["tenant", "actor_id", "seq"], name="auditevent_tenant_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.seq} {self.action}"


class IdempotencyKey(TenantModel):
    """The answer of a write that was sent with an `Idempotency-Key`: whoever sends it again within a day gets it again.

    `tenants.services.idempotency` writes and reads them.
    """

    # The API key or person that asked; somebody else's key of the same name is another key.
    actor_id = models.UUIDField()
    key = models.CharField(max_length=255)
    # What the request was, as an HMAC.
    fingerprint = models.BinaryField(max_length=32)
    status = models.SmallIntegerField()
    # JSON with headers and body; sealed with field `tenants_idempotencykey.answer_sealed:<id>`.
    answer_sealed = SealedField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="idempotencykey_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "actor_id", "key"], name="idempotencykey_tenant_key"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "created_at"], name="idempotencykey_tenant_created"),
        ]

    def __str__(self) -> str:
        return f"an answer of {self.created_at:%Y-%m-%d %H:%M}"


class TenantLimits(TenantModel):
    """What the operator allows the tenant. NULL is the installation's default, -1 no limit, 0 none at all.

    mirror_app may read these rows and not write them: only `manage.py tenant_limits` does, as mirror_owner.
    """

    UNLIMITED: ClassVar[int] = -1

    calls = models.IntegerField(null=True, blank=True)
    judge_calls = models.IntegerField(null=True, blank=True)
    requests_per_minute = models.IntegerField(null=True, blank=True)
    key_requests_per_minute = models.IntegerField(null=True, blank=True)
    storage_mib = models.IntegerField(null=True, blank=True)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="tenantlimits_tenant_id"),
            models.UniqueConstraint(fields=["tenant"], name="tenantlimits_tenant"),
            models.CheckConstraint(
                condition=models.Q(calls__gte=-1)
                & models.Q(judge_calls__gte=-1)
                & models.Q(requests_per_minute__gte=-1)
                & models.Q(key_requests_per_minute__gte=-1)
                & models.Q(storage_mib__gte=-1),
                name="tenantlimits_not_negative",
            ),
        ]

    def __str__(self) -> str:
        return "limits"


class TenantUse(TenantModel):
    """How much of the database the tenant's record takes; one row, kept by whoever writes the record."""

    # Bytes of the stored events of calls, as JSON; what indexes and projections take comes on top.
    storage_bytes = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="tenantuse_tenant_id"),
            models.UniqueConstraint(fields=["tenant"], name="tenantuse_tenant"),
        ]

    def __str__(self) -> str:
        return f"{self.storage_bytes} bytes"


class LimitRefusal(TenantModel):
    """How often one of the tenant's limits refused something on one day (UTC)."""

    day = models.DateField()
    kind = models.CharField(max_length=16)
    count = models.BigIntegerField(default=0)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="limitrefusal_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "day", "kind"], name="limitrefusal_tenant_day_kind"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.day}: {self.count}"
