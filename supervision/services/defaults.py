"""The tenant's default models: what new drafts and new agents get when nothing else is said."""

from __future__ import annotations

from uuid import UUID

from django.db import transaction
from django.utils import timezone

from supervision.models import ModelDefaults, ProviderCredential
from supervision.services.credentials import credential_of_kind
from tenants.services.audit import auditevent_record, changes, snapshot


def model_defaults_update(*, llm_credential_id: UUID | None, tts_credential_id: UUID | None) -> ModelDefaults:
    """Replace the current tenant's defaults; None: there is none. What was made before stays as it is.

    Raises ValidationError naming the field.
    """
    with transaction.atomic():
        ModelDefaults.objects.bulk_create([ModelDefaults()], ignore_conflicts=True)
        row = ModelDefaults.objects.select_for_update(no_key=True).get()
        was = snapshot(row)
        row.llm_credential = credential_of_kind(llm_credential_id, ProviderCredential.Kind.LLM)
        row.tts_credential = credential_of_kind(tts_credential_id, ProviderCredential.Kind.TTS)
        before, after = changes(was, snapshot(row))
        if after:
            row.updated_at = timezone.now()
            row.save()
            auditevent_record(
                action="model_defaults.update", row=row, object_label="default models", before=before, after=after
            )
        return row


def default_llm_credential_id() -> UUID | None:
    """The language model that a draft of the current tenant is judged by unless it names one; None: there is none."""
    return ModelDefaults.objects.values_list("llm_credential_id", flat=True).first()


def default_tts_credential_id() -> UUID | None:
    """The voice that an agent of the current tenant gets unless one is named; None: there is none."""
    return ModelDefaults.objects.values_list("tts_credential_id", flat=True).first()
