"""Forms of the tenant's settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID

import phonenumbers
from django import forms
from django.http import QueryDict

from supervision.alarms import KINDS as ALARM_KINDS
from supervision.models import ModelDefaults, PrivacySettings, ProviderCredential
from supervision.redaction import (
    KINDS,
    MAX_NAME_CHARS,
    MAX_PATTERN_CHARS,
    MAX_PATTERNS,
    REGIONS,
    OwnPattern,
    RedactionSettings,
    Redactor,
)
from supervision.selectors.alarms import AlarmChoice
from supervision.services.privacy import MAX_RETENTION_DAYS, pattern_problems
from tenants.names import NAME_CHARS
from webui.forms import ErrorAwareMixin, ServiceErrorsMixin

SAMPLE_CHARS = 4000
KIND_WORDS = {
    "card": "card numbers (13 to 19 digits with a right check digit)",
    "email": "e-mail addresses",
    "phone": "phone numbers",
}
ALARM_NAMES = {
    "coverage": "Turns not judged",
    "call": "Calls that fail",
    "webhook": "Webhooks switched off",
    "limit": "Limits reached",
}


class TenantForm(ServiceErrorsMixin, forms.Form):
    """What the tenant is called."""

    name = forms.CharField(
        label="Name",
        max_length=NAME_CHARS,
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
        help_text="How pages and mails call the tenant.",
        error_messages={
            "required": "Give a name.",
            "max_length": f"Use {NAME_CHARS} characters at most.",
            "null_characters_not_allowed": "Give a name in one line, without control characters.",
        },
    )


class ModelDefaultsForm(ServiceErrorsMixin, forms.Form):
    """The credentials that new drafts and new agents get."""

    llm_credential_id = forms.TypedChoiceField(
        label="The model that judges",
        required=False,
        coerce=UUID,
        empty_value=None,
        help_text="New drafts of policies get it. Those there are keep theirs.",
    )
    tts_credential_id = forms.TypedChoiceField(
        label="The voice",
        required=False,
        coerce=UUID,
        empty_value=None,
        help_text="New agents get it. Those there are keep theirs.",
    )

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        credentials: Iterable[ProviderCredential],
        stored: ModelDefaults | None,
    ) -> None:
        super().__init__(
            data, initial={name: getattr(stored, name, None) for name in ("llm_credential_id", "tts_credential_id")}
        )
        found = list(credentials)
        for name, kind in (("llm_credential_id", "llm"), ("tts_credential_id", "tts")):
            field = self.fields[name]
            assert isinstance(field, forms.TypedChoiceField)
            offered = [(str(one.id), f"{one.name} ({one.model})") for one in found if one.kind == kind]
            field.choices = [("", "None"), *offered]
            field.error_messages["invalid_choice"] = "Choose one of the list; this one may have been deleted."


class PrivacyForm(ServiceErrorsMixin, forms.Form):
    """What is taken out of calls before they are stored, and how long they are kept."""

    redact = forms.MultipleChoiceField(
        label="Take out",
        required=False,
        choices=[(kind, KIND_WORDS[kind]) for kind in KINDS],
        widget=forms.CheckboxSelectMultiple,
        error_messages={"invalid_choice": "Choose from the list.", "invalid_list": "Choose from the list."},
    )
    phone_region = forms.ChoiceField(
        label="Phone numbers without a country code are of",
        choices=[(region, f"{region} (+{phonenumbers.country_code_for_region(region)})") for region in sorted(REGIONS)],
        error_messages={"required": "Choose a country.", "invalid_choice": "Choose one of the list."},
    )
    retention_days = forms.IntegerField(
        label="Delete calls when they are older than, in days",
        required=False,
        min_value=1,
        max_value=MAX_RETENTION_DAYS,
        widget=forms.NumberInput(attrs={"autocomplete": "off", "inputmode": "numeric", "placeholder": "kept for good"}),
        help_text="Counted from the end of the call. Leave it empty to keep calls for good.",
        error_messages={
            "invalid": "Give a whole number of days.",
            "min_value": f"Give 1 to {MAX_RETENTION_DAYS} days, or nothing to keep calls.",
            "max_value": f"Give 1 to {MAX_RETENTION_DAYS} days, or nothing to keep calls.",
        },
    )
    delete_confirmed = forms.BooleanField(label="Delete these calls", required=False)
    sample = forms.CharField(
        label="A sentence to try it with",
        required=False,
        max_length=SAMPLE_CHARS,
        widget=forms.Textarea(
            attrs={"rows": 3, "autocomplete": "off", "placeholder": "My card is 4111 1111 1111 1111."}
        ),
        error_messages={"max_length": f"Use {SAMPLE_CHARS} characters at most."},
    )

    @staticmethod
    def initial_of(stored: PrivacySettings) -> dict[str, Any]:
        return {
            "redact": stored.redact,
            "phone_region": stored.phone_region,
            "retention_days": stored.retention_days,
        }


class PatternForm(ErrorAwareMixin, forms.Form):
    """A pattern of the tenant's own; an empty one is none."""

    name = forms.CharField(
        required=False,
        max_length=MAX_NAME_CHARS,
        strip=False,
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "member number"}),
        error_messages={"max_length": f"Use {MAX_NAME_CHARS} characters at most."},
    )
    pattern = forms.CharField(
        label="RE2 pattern",
        required=False,
        max_length=MAX_PATTERN_CHARS,
        strip=False,
        widget=forms.TextInput(
            attrs={"autocomplete": "off", "spellcheck": "false", "class": "mono", "placeholder": r"M-\d{6}"}
        ),
        error_messages={"max_length": f"Use {MAX_PATTERN_CHARS} characters at most."},
    )


if TYPE_CHECKING:
    _PatternFormsBase = forms.BaseFormSet[PatternForm]
else:
    _PatternFormsBase = forms.BaseFormSet


class _PatternForms(_PatternFormsBase):
    """The patterns of the page, in order; those that were emptied are taken away."""

    def clean(self) -> None:
        for problem in pattern_problems(self.patterns()):
            form = self._filled()[problem.number - 1]
            if problem.field not in form.errors:
                form.add_error(problem.field, f"{problem.what[:1].upper()}{problem.what[1:]}.")
        for form in self.forms:
            form.mark_errors()

    def patterns(self) -> list[dict[str, str]]:
        """What was typed, as the service takes it."""
        return [
            {
                "name": str(form.data.get(form.add_prefix("name"), "")),
                "pattern": str(form.data.get(form.add_prefix("pattern"), "")),
            }
            for form in self._filled()
        ]

    def _filled(self) -> list[PatternForm]:
        return [
            form
            for form in self.forms
            if form.data.get(form.add_prefix("name"), "") or form.data.get(form.add_prefix("pattern"), "")
        ]


PatternForms = forms.formset_factory(
    PatternForm, formset=_PatternForms, extra=1, max_num=MAX_PATTERNS, absolute_max=MAX_PATTERNS + 10, validate_max=True
)


def pattern_forms(data: QueryDict | None = None, *, patterns: Sequence[Mapping[str, str]] = ()) -> _PatternForms:
    """The patterns' forms as they were sent, or those of the stored `patterns` and an empty one."""
    made = PatternForms(
        data,
        initial=list(patterns),
        prefix="patterns",
        error_messages={
            "too_many_forms": f"Give at most {MAX_PATTERNS} patterns.",
            "missing_management_form": "The form came incomplete. Look it over and send it again.",
        },
    )
    assert isinstance(made, _PatternForms)
    return made


def redaction_try(form: PrivacyForm, patterns: Sequence[Mapping[str, str]]) -> str:
    """The sample of a form that is right, as it would be stored with what stands in the form."""
    cleaned = form.cleaned_data
    own = tuple(OwnPattern(pattern["name"], pattern["pattern"]) for pattern in patterns)
    redactor = Redactor(RedactionSettings(frozenset(cleaned["redact"]), cleaned["phone_region"], own))
    return redactor.text(cleaned["sample"])


class AlarmChoicesForm(ServiceErrorsMixin, forms.Form):
    """Which members are mailed of which alarms: a field of boxes for each member."""

    def __init__(self, data: QueryDict | None = None, *, choices: Sequence[AlarmChoice]) -> None:
        super().__init__(data)
        self.choices = choices
        for choice in choices:
            self.fields[choice.membership.id.hex] = AlarmKindsField(
                initial=sorted(choice.kinds, key=list(ALARM_KINDS).index)
            )

    def changed(self) -> list[tuple[AlarmChoice, list[str]]]:
        """Whose choice is another one now."""
        given = [(choice, self.cleaned_data[choice.membership.id.hex]) for choice in self.choices]
        return [(choice, kinds) for choice, kinds in given if choice.kinds != frozenset(kinds)]

    def rows(self) -> list[tuple[AlarmChoice, forms.BoundField]]:
        return [(choice, self[choice.membership.id.hex]) for choice in self.choices]


class AlarmKindsField(forms.MultipleChoiceField):
    """Kinds of alarms, none of them among it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(
            required=False,
            choices=list(ALARM_NAMES.items()),
            widget=forms.CheckboxSelectMultiple,
            error_messages={"invalid_choice": "Choose from the list.", "invalid_list": "Choose from the list."},
            **kwargs,
        )


class OwnAlarmsForm(ServiceErrorsMixin, forms.Form):
    """What a member is mailed of themselves."""

    kinds = AlarmKindsField(label="Mail me")
