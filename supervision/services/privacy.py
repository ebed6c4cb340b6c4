"""What a tenant keeps of its calls: redaction, and retention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils import timezone

from supervision.models import Approval, Call, LedgerEntry, PrivacySettings
from supervision.redaction import (
    KINDS,
    MAX_NAME_CHARS,
    MAX_PATTERN_CHARS,
    MAX_PATTERNS,
    REGIONS,
    OwnPattern,
    PatternInvalid,
    RedactionSettings,
    Redactor,
    pattern_compile,
)
from supervision.services.erasure import LONGEST_CALL, calls_tools_forget, usage_keep
from supervision.services.storage import calls_storage_bytes, storage_release
from supervision.services.usage import latency_days_close, usage_days_close
from tenants.services.audit import auditevent_record, changes, snapshot

MAX_RETENTION_DAYS: Final = 3_650
# Beyond the longest call, so that a ledger's row outlives every socket of its call.
LEDGER_KEPT: Final = 2 * LONGEST_CALL
_BATCH: Final = 500


def privacy_update(
    *,
    retention_days: int | None,
    redact: Sequence[str],
    phone_region: str,
    patterns: Sequence[Mapping[str, str]],
) -> PrivacySettings:
    """Replace what the current tenant wants: calls that begin from now on are redacted so, and calls that ended more
    than `retention_days` ago are deleted by the next run of the schedule (None: never).

    Raises ValidationError naming the field.
    """
    messages: dict[str, list[str]] = {}
    if retention_days is not None and not 1 <= retention_days <= MAX_RETENTION_DAYS:
        messages["retention_days"] = [f"Give 1 to {MAX_RETENTION_DAYS} days, or null to keep calls."]
    if unknown := sorted(set(redact) - set(KINDS)):
        messages["redact"] = [f"{unknown[0]!r} is not known; use {', '.join(KINDS)}."]
    if phone_region not in REGIONS:
        messages["phone_region"] = ["Give a country as two capital letters, such as US or DE."]
    problems = [str(problem) for problem in pattern_problems(patterns[:MAX_PATTERNS])]
    if len(patterns) > MAX_PATTERNS:
        problems.insert(0, f"Give at most {MAX_PATTERNS} patterns.")
    if problems:
        messages["patterns"] = problems
    if messages:
        raise ValidationError(messages)
    with transaction.atomic():
        PrivacySettings.objects.bulk_create([PrivacySettings()], ignore_conflicts=True)
        row = PrivacySettings.objects.select_for_update(no_key=True).get()
        was = snapshot(row)
        row.retention_days = retention_days
        row.redact = sorted(set(redact), key=KINDS.index)
        row.phone_region = phone_region
        row.patterns = [{"name": pattern["name"], "pattern": pattern["pattern"]} for pattern in patterns]
        row.updated_at = timezone.now()
        row.save()
        before, after = changes(was, snapshot(row))
        if after:
            auditevent_record(action="privacy.update", row=row, object_label="privacy", before=before, after=after)
        return row


@dataclass(frozen=True, slots=True)
class PatternProblem:
    """What is wrong with a pattern of the tenant's own: the `number`-th, from 1, in its `name` or `pattern`."""

    number: int
    field: Literal["name", "pattern"]
    what: str

    def __str__(self) -> str:
        return f"Pattern {self.number}: {self.what}."


def pattern_problems(patterns: Sequence[Mapping[str, str]]) -> list[PatternProblem]:
    """What is wrong with the tenant's own patterns, of which there are as many as may be."""
    problems = []
    names = set()
    for number, pattern in enumerate(patterns, start=1):
        name, expression = pattern["name"], pattern["pattern"]
        if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable() or set(name) & set("[]"):
            what = f"its name needs 1 to {MAX_NAME_CHARS} characters, without brackets"
            problems.append(PatternProblem(number, "name", what))
        elif name in names:
            problems.append(PatternProblem(number, "name", f"there is another one called {name}"))
        names.add(name)
        if len(expression) > MAX_PATTERN_CHARS or "\x00" in expression:
            what = f"at most {MAX_PATTERN_CHARS} characters, without U+0000"
            problems.append(PatternProblem(number, "pattern", what))
            continue
        try:
            pattern_compile(expression)
        except PatternInvalid as problem:
            problems.append(PatternProblem(number, "pattern", str(problem)))
    return problems


def redactor_of_tenant() -> Redactor:
    """What takes out of the current tenant's texts what it does not want stored."""
    row = PrivacySettings.objects.first()
    if row is None:
        return Redactor(RedactionSettings())
    own = tuple(OwnPattern(pattern["name"], pattern["pattern"]) for pattern in row.patterns)
    return Redactor(RedactionSettings(frozenset(row.redact), row.phone_region, own))


def calls_prune(*, now: datetime) -> int:
    """Store the usage of days that are over, then delete the current tenant's calls that are older than it keeps them;
    returns how many. Each batch is a transaction of its own, or a savepoint inside another one."""
    usage_days_close(now=now)
    latency_days_close(now=now)
    # By then their calls have ended, wherever they ran: what came of these tools is in the calls' record.
    LedgerEntry.objects.filter(created_at__lt=now - LEDGER_KEPT).delete()
    row = PrivacySettings.objects.first()
    if row is None or row.retention_days is None:
        return 0
    before = now.astimezone(UTC) - timedelta(days=row.retention_days)
    pruned = 0
    while True:
        with transaction.atomic():
            old = Call.objects.filter(started_at__lt=before).order_by("started_at", "id")
            ended = old.filter(state=Call.State.ENDED, ended_at__lt=before)
            # A call that never ended lost its process.
            lost = old.filter(state=Call.State.LIVE, started_at__lt=before - LONGEST_CALL)
            calls = [*ended.select_for_update(no_key=True)[:_BATCH], *lost.select_for_update(no_key=True)[:_BATCH]]
            if not calls:
                # Of calls that never came to be recorded.
                Approval.objects.filter(requested_at__lt=before - LONGEST_CALL).delete()
                return pruned
            ids = [call.id for call in calls]
            usage_keep(calls=calls)
            stored = calls_storage_bytes(call_ids=ids)
            Call.objects.filter(id__in=ids).delete()
            calls_tools_forget(call_ids=ids)
            storage_release(storage_bytes=stored)
            pruned += len(ids)
