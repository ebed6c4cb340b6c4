"""The form of the first run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from django import forms
from django.core.exceptions import ValidationError

from supervision.engine.config import MAX_RULE_CHARS, MAX_RULES
from supervision.services.policies import rules_parse
from webui.forms import ServiceErrorsMixin

EXAMPLE_RULES: Final = (
    "Never confirm or promise a refund; a colleague decides about refunds.",
    "Never promise a delivery date.",
    "Never ask for a card number, a password or a one-time code.",
)
_RULES_CHARS: Final = 100_000


class FirstAgentForm(ServiceErrorsMixin, forms.Form):
    """One's own agent, the rules that it is to keep, and the model that judges it. A tenant that has a default model is
    not asked for one."""

    name = forms.CharField(
        label="Name",
        max_length=200,
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "Front desk"}),
        error_messages={"required": "Give the agent a name.", "max_length": "Use 200 characters at most."},
    )
    upstream_url = forms.CharField(
        label="WebSocket URL",
        max_length=2000,
        widget=forms.TextInput(
            attrs={
                "autocomplete": "off",
                "spellcheck": "false",
                "inputmode": "url",
                "placeholder": "wss://agents.example.com/front-desk",
            }
        ),
        help_text="Where Plivo’s stream goes today: the ws:// or wss:// address that your agent listens at.",
        error_messages={
            "required": "Give the URL that the agent listens at.",
            "max_length": "Use 2000 characters at most.",
        },
    )
    rules = forms.CharField(
        label="Rules",
        max_length=_RULES_CHARS,
        initial="\n".join(EXAMPLE_RULES),
        widget=forms.Textarea(attrs={"rows": 5, "autocomplete": "off"}),
        help_text="In plain words, one a line. They can be changed at any time.",
        error_messages={
            "required": "Write at least one rule.",
            "max_length": f"Give at most {MAX_RULES} rules of {MAX_RULE_CHARS} characters.",
            "null_characters_not_allowed": "Leave out the character U+0000.",
        },
    )
    judge_url = forms.CharField(
        label="Judged by a model at",
        max_length=2000,
        initial="https://api.openai.com/v1",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "inputmode": "url"}),
        help_text="Any server that speaks OpenAI’s API.",
        error_messages={
            "required": "Give the URL of the model’s server.",
            "max_length": "Use 2000 characters at most.",
        },
    )
    judge_model = forms.CharField(
        label="Model",
        max_length=200,
        initial="gpt-4o-mini",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
        error_messages={"required": "Name the model to ask there.", "max_length": "Use 200 characters at most."},
    )
    judge_key = forms.CharField(
        label="API key",
        required=False,
        max_length=4000,
        widget=forms.PasswordInput(attrs={"autocomplete": "off"}),
        help_text="Stored sealed, never shown again. Empty for a server that wants none.",
        error_messages={"max_length": "Use 4000 characters at most."},
    )

    def __init__(self, data: Mapping[str, Any] | None = None, *, has_judge: bool) -> None:
        super().__init__(data)
        if has_judge:
            for name in ("judge_url", "judge_model", "judge_key"):
                del self.fields[name]

    def clean_rules(self) -> list[str]:
        rules = rules_parse(str(self.cleaned_data["rules"]))
        if not rules:
            raise ValidationError("Write at least one rule. Lines that begin with # are left out.")
        return rules
