"""`/tenant/privacy`: what is taken out of calls before they are stored, and how long they are kept."""

from datetime import datetime
from typing import Literal

from django.http import HttpRequest
from ninja import Router
from pydantic import ConfigDict, Field

from mirror_saas.problems import problem_responses
from mirror_saas.schemas import In, Out
from supervision.models import PrivacySettings
from supervision.redaction import DEFAULT_REGION, KINDS, MAX_NAME_CHARS, MAX_PATTERN_CHARS, MAX_PATTERNS
from supervision.services.privacy import MAX_RETENTION_DAYS, privacy_update
from tenants.api.auth import requires
from tenants.api.writes import writes
from tenants.roles import Scope

router = Router(tags=["tenant"])

Kind = Literal["card", "email", "phone"]


class PatternIn(In):
    """A pattern of the tenant's own. What it finds becomes `[name]`."""

    name: str = Field(min_length=1, max_length=MAX_NAME_CHARS, description="For example `member number`.")
    pattern: str = Field(
        min_length=1, max_length=MAX_PATTERN_CHARS, description="RE2 syntax: no look-around, no back-references."
    )


class PatternOut(Out):
    """A pattern of the tenant's own. What it finds becomes `[name]`."""

    name: str
    pattern: str


class PrivacyIn(In):
    """All of it: what is left out gets its default."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "retention_days": 90,
                    "redact": ["card", "email", "phone"],
                    "phone_region": "DE",
                    "patterns": [{"name": "member number", "pattern": "M-[0-9]{6}"}],
                }
            ]
        }
    )

    retention_days: int | None = Field(
        None, ge=1, le=MAX_RETENTION_DAYS, description="Calls that ended longer ago are deleted; null keeps them."
    )
    redact: list[Kind] = Field(default=["card", "email", "phone"], max_length=len(KINDS))
    phone_region: str = Field(
        DEFAULT_REGION,
        pattern="^[A-Z]{2}$",
        description="Phone numbers without a country code are read as this country's (ISO 3166-1).",
    )
    patterns: list[PatternIn] = Field(default_factory=list, max_length=MAX_PATTERNS)


class PrivacyOut(Out):
    """What is taken out of calls before they are stored, and how long they are kept."""

    retention_days: int | None
    redact: list[str]
    phone_region: str
    patterns: list[PatternOut]
    updated_at: datetime | None
    """Null while nobody has chosen anything: then these are the defaults."""

    @classmethod
    def of(cls, row: PrivacySettings | None) -> "PrivacyOut":
        if row is None:
            return cls(
                retention_days=None, redact=list(KINDS), phone_region=DEFAULT_REGION, patterns=[], updated_at=None
            )
        return cls(
            retention_days=row.retention_days,
            redact=row.redact,
            phone_region=row.phone_region,
            patterns=[PatternOut(**pattern) for pattern in row.patterns],
            updated_at=row.updated_at,
        )


@router.get(
    "/tenant/privacy",
    response={200: PrivacyOut, **problem_responses(401, 403)},
    operation_id="privacy_get",
    summary="Redaction and retention",
)
@requires(Scope.ADMIN)
def privacy(request: HttpRequest) -> PrivacyOut:
    """What is taken out of calls before they are stored, and how long calls are kept."""
    return PrivacyOut.of(PrivacySettings.objects.first())


@router.put(
    "/tenant/privacy",
    response={200: PrivacyOut, **problem_responses(400, 401, 403, 422)},
    operation_id="privacy_update",
    summary="Change redaction and retention",
)
@writes(Scope.ADMIN, recent=True)
def privacy_put(request: HttpRequest, body: PrivacyIn) -> PrivacyOut:
    """Replace both. Calls that begin from now on are redacted so; what is stored already stays as it is. Calls that are
    older than `retention_days` are deleted within the hour, and nothing brings them back."""
    row = privacy_update(
        retention_days=body.retention_days,
        redact=body.redact,
        phone_region=body.phone_region,
        patterns=[pattern.model_dump() for pattern in body.patterns],
    )
    return PrivacyOut.of(row)
