"""Forms about policies: their names, their versions, and the agents that they judge."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.forms.boundfield import BoundField

from supervision.models import Agent, ProviderCredential, Track
from supervision.services.derivation import MAX_PROMPT_CHARS
from supervision.services.policies import MAX_NOTE_CHARS
from webui.forms import ServiceErrorsMixin
from webui.plain import plain_errors
from webui.policy_settings import GROUPS, RANGE, SETTINGS, Setting
from webui.rule_rows import names_of

NAME_CHARS: Final = 200
TRACK_WORDS: Final = (
    (Track.LIVE.value, "Live version"),
    (Track.SHADOW.value, "Shadow version, while there is one"),
)
_CHOOSE: Final = {"invalid_choice": "Choose one of the list.", "required": "Choose one of the list."}
_NOT_NUL: Final = {"null_characters_not_allowed": "Take out the character U+0000."}


class _NameField(forms.CharField):
    def __init__(self, *, required: bool = True) -> None:
        super().__init__(
            label="Name",
            max_length=NAME_CHARS,
            required=required,
            widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "Refunds and payments"}),
            error_messages={
                "required": "Give the policy a name.",
                "max_length": f"Use {NAME_CHARS} characters at most.",
                **_NOT_NUL,
            },
        )


class _CredentialField(forms.TypedChoiceField):
    """One of the tenant's language models, or none."""

    def __init__(
        self, label: str, credentials: Iterable[ProviderCredential], *, none: str, help_text: str = "", **kwargs: Any
    ) -> None:
        choices = [(str(one.id), f"{one.name} · {one.model}" if one.model else one.name) for one in credentials]
        super().__init__(
            label=label,
            required=False,
            coerce=UUID,
            empty_value=None,
            choices=[("", none), *choices],
            help_text=help_text,
            error_messages=_CHOOSE,
            **kwargs,
        )


class PolicyNewForm(ServiceErrorsMixin, forms.Form):
    """A policy and its first draft."""

    service_fields = {"llm_credential_id": "llm", "config": "rules"}  # noqa: RUF012

    name = _NameField()
    rules = forms.CharField(
        label="Rules, one a line",
        widget=forms.Textarea(
            attrs={
                "rows": 6,
                "placeholder": "Never confirm a refund; a colleague decides.\nNever promise a delivery date.",
            }
        ),
        help_text="In plain language, each about one thing: what the agent must not do, or must do before something"
        " else. Severity, tools and all else come next.",
        error_messages={"required": "Write at least one rule.", **_NOT_NUL},
    )

    def __init__(self, *args: Any, credentials: Iterable[ProviderCredential], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["llm"] = _CredentialField("Judged by", credentials, none="No model yet: nothing would be judged")


class RulesForm(ServiceErrorsMixin, forms.Form):
    """The first draft of a policy that has no version."""

    service_fields = {"config": "rules"}  # noqa: RUF012

    rules = PolicyNewForm.base_fields["rules"]


class PolicyNameForm(ServiceErrorsMixin, forms.Form):
    """Another name for a policy; `etag` is the state that it is about."""

    name = _NameField()
    etag = forms.CharField(required=False, max_length=100, widget=forms.HiddenInput)


class DeriveForm(ServiceErrorsMixin, forms.Form):
    """An agent's system prompt, and where the draft goes."""

    service_fields = {"llm_credential_id": "llm", "agent_prompt": "prompt", "policy_id": "policy"}  # noqa: RUF012

    prompt = forms.CharField(
        label="The agent’s system prompt",
        max_length=MAX_PROMPT_CHARS,
        widget=forms.Textarea(attrs={"rows": 14, "spellcheck": "false"}),
        help_text="All of it. It is read by the model below and is not stored.",
        error_messages={
            "required": "Paste the prompt that the agent runs with.",
            "max_length": f"Give at most {MAX_PROMPT_CHARS:,} characters at a time.",
            **_NOT_NUL,
        },
    )
    policy = forms.TypedChoiceField(
        label="Draft of", required=False, coerce=UUID, empty_value=None, error_messages=_CHOOSE
    )
    name = _NameField(required=False)

    def __init__(
        self,
        *args: Any,
        policies: Sequence[tuple[UUID, str]],
        credentials: Iterable[ProviderCredential],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        policy = self.fields["policy"]
        assert isinstance(policy, forms.TypedChoiceField)
        policy.choices = [("", "A new policy"), *((str(policy_id), name) for policy_id, name in policies)]
        self.fields["name"].label = "Name of the new policy"
        self.fields["llm"] = _CredentialField("Read by", credentials, none="The tenant’s default model")

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("policy") is None and "policy" in cleaned and not cleaned.get("name") and "name" in cleaned:
            self.add_error("name", "Give the new policy a name.")
        return cleaned


class AssignForm(ServiceErrorsMixin, forms.Form):
    """An agent that a policy is to judge."""

    agent = forms.TypedChoiceField(label="Agent", coerce=UUID, error_messages=_CHOOSE)
    track = forms.ChoiceField(label="Its new calls get", choices=TRACK_WORDS, error_messages=_CHOOSE)

    def __init__(self, *args: Any, agents: Sequence[Agent], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        agent = self.fields["agent"]
        assert isinstance(agent, forms.TypedChoiceField)
        agent.choices = [
            ("", "Choose an agent"),
            *((str(one.id), f"{one.name} (now {one.policy.name})" if one.policy else one.name) for one in agents),
        ]


# -- settings ------------------------------------------------------------------------------------------------------


class SettingsForm(ServiceErrorsMixin, forms.Form):
    """Fields for settings of the engine. One that is left empty says nothing: the default counts, or the policy."""

    unset_words = "all as the default"

    def __init__(self, *args: Any, names: Collection[str], unset: str = "Default", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.names = tuple(name for name in SETTINGS if name in names)
        for name in self.names:
            self.fields[name] = _field(SETTINGS[name], unset)
        if "buffer_text" in self.names:
            self.fields[_OWN_LINES] = forms.BooleanField(
                required=False, label="Mirror’s own first words in every language"
            )

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get(_OWN_LINES) and cleaned.get("buffer_text"):
            self.add_error("buffer_text", "Write the words, or choose Mirror’s own: not both.")
        return cleaned

    def config(self) -> dict[str, Any]:
        """The settings that were given."""
        given = {
            name: value for name in self.names if (value := self.cleaned_data.get(name)) not in (None, "", _UNSAID)
        }
        if self.cleaned_data.get(_OWN_LINES):
            given["buffer_text"] = None
        return given

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The fields as they stand on the page. A group is open when something in it was given, or is wrong."""
        found = []
        for group in GROUPS:
            fields = [self._shown(setting) for setting in group.settings if setting.name in self.names]
            if fields:
                found.append(
                    {
                        "group": group,
                        "fields": fields,
                        "unset": self.unset_words,
                        "given": sum(one["given"] for one in fields),
                        "wrong": sum(bool(one["field"].errors) for one in fields),
                    }
                )
        return found

    def _shown(self, setting: Setting) -> dict[str, Any]:
        field: BoundField = self[setting.name]
        given = bool(field.value())
        if setting.name == "buffer_text":
            return {
                "setting": setting,
                "field": field,
                "given": given or bool(self[_OWN_LINES].value()),
                "own": self[_OWN_LINES],
            }
        return {"setting": setting, "field": field, "given": given}

    def refuse(self, error: ValidationError) -> None:
        super().refuse(plain_errors(error))


_OWN_LINES: Final = "buffer_text_own"
_UNSAID: Final[list[str]] = []


class VersionForm(SettingsForm):
    """Everything of a draft but its rules, which are rows (see webui.rule_rows)."""

    service_fields = {"llm_credential_id": "llm", "fallback_credential_id": "fallback"}  # noqa: RUF012

    etag = forms.CharField(required=False, max_length=100, widget=forms.HiddenInput)
    note = forms.CharField(
        label="What changed, and why",
        required=False,
        max_length=MAX_NOTE_CHARS,
        widget=forms.Textarea(attrs={"rows": 2}),
        help_text="For whoever reads the list of versions.",
        error_messages={"max_length": f"Use {MAX_NOTE_CHARS} characters at most.", **_NOT_NUL},
    )

    def __init__(self, *args: Any, credentials: Sequence[ProviderCredential], **kwargs: Any) -> None:
        super().__init__(*args, names=SETTINGS, **kwargs)
        self.fields["llm"] = _CredentialField(
            "Judged by",
            credentials,
            none="No model: nothing is judged",
            help_text="The language model that is asked about every turn. Credentials has them all.",
        )
        self.fields["fallback"] = _CredentialField(
            "When it does not answer", credentials, none="No second model", help_text="Is asked in its place."
        )

    def version_fields(self) -> dict[str, Any]:
        """As services take them, without the rules."""
        return {
            "config": self.config(),
            "llm_credential_id": self.cleaned_data["llm"],
            "fallback_credential_id": self.cleaned_data["fallback"],
            "note": self.cleaned_data["note"],
        }


class AgentSettingsForm(SettingsForm):
    """Which version an agent's calls get, and what is otherwise for them than in the policy."""

    unset_words = "as in the policy"

    track = forms.ChoiceField(label="Its new calls get", choices=TRACK_WORDS, error_messages=_CHOOSE)

    def __init__(self, *args: Any, names: Collection[str], **kwargs: Any) -> None:
        super().__init__(*args, names=names, unset="As in the policy", **kwargs)
        self.service_fields = {f"policy_overrides.{name}": name for name in names}


def settings_initial(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored version's settings as their fields have them."""
    initial: dict[str, Any] = {}
    for name, value in config.items():
        setting = SETTINGS.get(name)
        if setting is None:
            continue
        if setting.kind == "switch":
            initial[name] = "on" if value else "off"
        elif setting.kind == "names":
            initial[name] = "\n".join(value) or _NONE
        elif setting.kind in ("number", "whole") and isinstance(value, int | float):
            initial[name] = f"{value:g}" if setting.kind == "number" else str(value)
        elif value is not None:
            initial[name] = value
    if "buffer_text" in config and config["buffer_text"] is None:
        initial[_OWN_LINES] = True
    return initial


_NONE: Final = "none"


class _NumberField(forms.CharField):
    """A number that is typed as text: what is no number stays in the field."""

    def __init__(self, setting: Setting, **kwargs: Any) -> None:
        self.setting = setting
        super().__init__(max_length=40, **kwargs)

    def clean(self, value: Any) -> Any:
        text = str(super().clean(value) or "").strip().replace(",", ".")
        if not text:
            return None
        least, greatest = self.setting.bounds
        unit = f" {self.setting.unit}" if self.setting.unit and self.setting.unit != RANGE else ""
        whole = "whole number" if self.setting.kind == "whole" else "number"
        span = f"Give a {whole} from {least:g} to {greatest:g}{unit}."
        try:
            number = int(text) if self.setting.kind == "whole" else float(text)
        except (ValueError, OverflowError):
            raise ValidationError(span) from None
        # NaN is neither.
        if not least <= number <= greatest:
            raise ValidationError(span)
        return number


class _NamesField(forms.CharField):
    def clean(self, value: Any) -> Any:
        text = super().clean(value) or ""
        if text.strip().casefold() == _NONE:
            return ()
        return names_of(text) or None


class _SwitchField(forms.ChoiceField):
    def clean(self, value: Any) -> Any:
        word = super().clean(value)
        return None if word == "" else word == "on"


def _field(setting: Setting, unset: str) -> forms.Field:
    default = f"{unset}: {setting.default_words}" if unset == "Default" else unset
    common: dict[str, Any] = {"label": setting.label, "required": False, "help_text": setting.about}
    match setting.kind:
        case "number" | "whole":
            attributes: dict[str, Any] = {
                "inputmode": "decimal",
                "autocomplete": "off",
                "placeholder": f"{setting.default:g}" if unset == "Default" else unset,
            }
            return _NumberField(setting, widget=forms.TextInput(attrs=attributes), **common)
        case "switch":
            choices = [("", default), ("on", "On"), ("off", "Off")]
            return _SwitchField(choices=choices, error_messages=_CHOOSE, **common)
        case "choice":
            return forms.ChoiceField(choices=[("", default), *setting.choices], error_messages=_CHOOSE, **common)
        case "classes":
            return forms.MultipleChoiceField(
                choices=setting.choices, widget=forms.CheckboxSelectMultiple, error_messages=_CHOOSE, **common
            )
        case "names":
            shown = "\n".join(setting.default) if unset == "Default" else unset
            attributes = {"rows": 3, "spellcheck": "false", "placeholder": shown or _NONE}
            return _NamesField(widget=forms.Textarea(attrs=attributes), error_messages=_NOT_NUL, **common)
        case "prompt":
            attributes = {"rows": 8, "spellcheck": "false"}
            return forms.CharField(
                widget=forms.Textarea(attrs=attributes), max_length=setting.max_chars, error_messages=_NOT_NUL, **common
            )
        case _:
            attributes = {"autocomplete": "off", "placeholder": default}
            return forms.CharField(
                widget=forms.TextInput(attrs=attributes),
                max_length=setting.max_chars,
                error_messages={"max_length": f"Use {setting.max_chars} characters at most.", **_NOT_NUL},
                **common,
            )
