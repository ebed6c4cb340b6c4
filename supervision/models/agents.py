"""A tenant's voice agents, the keys that Plivo dials them with, and the providers that judge and speak."""

from __future__ import annotations

from typing import Any, ClassVar

from django.db import models
from django.utils import timezone

from supervision.models.fields import tenant_key, word_column
from tenants.managers import TenantModel
from tenants.sealing import SealedField


class Mode(models.TextChoices):
    """Whether Mirror acts on what it finds."""

    LIVE = "live", "Live: judges and steps in"
    SHADOW = "shadow", "Shadow: judges and never acts"


class Track(models.TextChoices):
    """Which of its policy's versions an agent's new calls get."""

    LIVE = "live", "The live version"
    SHADOW = "shadow", "The shadow version, while there is one"


class OnFailure(models.TextChoices):
    """What becomes of a call whose agent has failed."""

    CLOSE = "close", "The stream is closed, and the call's XML goes on behind it"
    HANGUP = "hangup", "The call is hung up"
    TRANSFER = "transfer", "The call goes on with other XML"


class ProviderCredential(TenantModel):
    """Access to an OpenAI-compatible server that judges (`llm`) or speaks (`tts`), to a Plivo account (`plivo`), or to
    a forge, where fixes are opened as pull or merge requests (`forge`)."""

    class Kind(models.TextChoices):
        LLM = "llm", "Language model"
        TTS = "tts", "Text to speech"
        PLIVO = "plivo", "Plivo account"
        FORGE = "forge", "Forge"

    class Provider(models.TextChoices):
        """The kinds of forges."""

        GITHUB = "github", "GitHub"
        GITLAB = "gitlab", "GitLab"

    name = models.CharField(max_length=200)
    kind = models.CharField(max_length=8, choices=Kind.choices)
    base_url = models.CharField(max_length=2000)
    # Of a server; empty for a Plivo account and a forge.
    model = models.CharField(max_length=200, blank=True)
    # US dollars per million tokens, for what usage cost; NULL when nobody said.
    prompt_price = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    completion_price = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    # The auth id of a Plivo account or sub-account; empty for others.
    account = word_column(40)
    # Of a forge; empty for others.
    provider = word_column(16)
    # The API key, Plivo's auth token or a forge's access token; sealed with field
    # `supervision_providercredential.api_key_sealed:<id>`.
    api_key_sealed = SealedField()
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="providercredential_tenant_id"),
            models.UniqueConstraint(
                fields=["tenant", "account"],
                condition=models.Q(kind="plivo"),
                name="providercredential_tenant_account",
            ),
            models.CheckConstraint(
                condition=models.Q(kind__in=["llm", "tts", "plivo", "forge"]), name="providercredential_kind"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Agent(TenantModel):
    """A voice agent of the tenant: where it listens, how it is dialled, which policy its turns are judged by."""

    name = models.CharField(max_length=200)
    upstream_url = models.CharField(max_length=2000)
    # `X-Mirror-Signature`'s secret; sealed with field `supervision_agent.signing_secret_sealed:<id>`.
    signing_secret_sealed = SealedField()
    # The tenant's headers for the handshake with the agent: a sealed JSON object, field
    # `supervision_agent.headers_sealed:<id>`; NULL when there are none.
    headers_sealed = SealedField(null=True, blank=True)
    mode = models.CharField(max_length=8, choices=Mode.choices, default=Mode.LIVE, db_default="live")
    language = models.CharField(max_length=35, default="en", db_default="en")
    voice = word_column(200)
    # What Plivo is asked to stream, as `contentType` of the answer's `<Stream>` has it.
    audio_format = models.CharField(
        max_length=32, default="audio/x-mulaw;rate=8000", db_default="audio/x-mulaw;rate=8000"
    )
    policy = tenant_key("supervision.Policy", related_name="agents", null=True)
    policy_track = models.CharField(max_length=8, choices=Track.choices, default=Track.LIVE, db_default="live")
    # Fields of a version's `config` that are otherwise for this agent's calls.
    policy_overrides: models.JSONField[Any, Any] = models.JSONField(
        default=dict, blank=True, db_default=models.Value({}, models.JSONField())
    )
    tts_credential = tenant_key("supervision.ProviderCredential", related_name="tts_agents", null=True)
    # When the agent cannot be reached, or its socket breaks: how often it is dialled again, what the caller is told
    # (nothing when empty), and what becomes of the call then.
    redials = models.PositiveSmallIntegerField(default=2, db_default=2)
    failure_message = word_column(300)
    on_failure = models.CharField(max_length=8, choices=OnFailure.choices, default=OnFailure.CLOSE, db_default="close")
    # The XML that a transferred call goes on with; Plivo asks for it.
    failure_transfer_url = word_column(2000)
    # Whether Plivo's stream has a way back for audio. Without one Mirror speaks by Plivo's Speak API.
    bidirectional = models.BooleanField(default=True, db_default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    updated_at = models.DateTimeField(default=timezone.now, editable=False)
    # Calls point at their agent for as long as they are kept, so an agent is archived, never deleted.
    archived_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="agent_tenant_id"),
            models.CheckConstraint(condition=models.Q(mode__in=Mode.values), name="agent_mode"),
            models.CheckConstraint(condition=models.Q(policy_track__in=Track.values), name="agent_policy_track"),
            models.CheckConstraint(condition=models.Q(on_failure__in=OnFailure.values), name="agent_on_failure"),
            models.CheckConstraint(condition=models.Q(redials__lte=5), name="agent_redials"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "policy"], name="agent_tenant_policy"),
            models.Index(fields=["tenant", "tts_credential"], name="agent_tenant_tts"),
        ]

    def __str__(self) -> str:
        return self.name


class StreamKey(TenantModel):
    """A key that may stand in a stream URL: 256 random bits, kept as their SHA-256 only."""

    agent = tenant_key("supervision.Agent", related_name="stream_keys")
    key_hash = models.BinaryField(max_length=32)
    created_at = models.DateTimeField(default=timezone.now, editable=False)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints: ClassVar[list[models.BaseConstraint]] = [
            models.UniqueConstraint(fields=["tenant", "id"], name="streamkey_tenant_id"),
            models.UniqueConstraint(fields=["tenant", "key_hash"], name="streamkey_tenant_hash"),
        ]
        indexes: ClassVar[list[models.Index]] = [
            models.Index(fields=["tenant", "agent"], name="streamkey_tenant_agent"),
        ]

    def __str__(self) -> str:
        return f"key of agent {self.agent_id}"
