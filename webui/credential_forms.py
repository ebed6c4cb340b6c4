"""Forms about credentials: one for each kind, which has the fields of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from supervision.models import ProviderCredential
from supervision.services.credentials import FORGE_APIS
from webui.forms import ServiceErrorsMixin

Kind = ProviderCredential.Kind

_SECRET_WORDS = {
    Kind.LLM: "API key",
    Kind.TTS: "API key",
    Kind.PLIVO: "Auth Token",
    Kind.FORGE: "Access token",
}
_FIELDS = {
    Kind.LLM: ("name", "base_url", "model", "secret", "prompt_price", "completion_price"),
    Kind.TTS: ("name", "base_url", "model", "secret"),
    Kind.PLIVO: ("account", "secret", "name"),
    Kind.FORGE: ("provider", "name", "base_url", "secret"),
}
# What says which account or forge it is stays as it was stored.
_FIXED = {"account", "provider"}


def _text(label: str, *, max_length: int, required: str = "", placeholder: str = "", **kwargs: Any) -> forms.CharField:
    return forms.CharField(
        label=label,
        max_length=max_length,
        required=bool(required),
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": placeholder}),
        error_messages={"required": required, "max_length": f"Use {max_length} characters at most."},
        **kwargs,
    )


def _price(label: str) -> forms.DecimalField:
    return forms.DecimalField(
        label=label,
        required=False,
        min_value=0,
        max_digits=12,
        decimal_places=6,
        widget=forms.TextInput(attrs={"autocomplete": "off", "inputmode": "decimal", "placeholder": "0.15"}),
        error_messages={
            "invalid": "Give a number such as 0.15.",
            "min_value": "Give 0 or more.",
            "max_digits": "Give a number with at most six places before and after the point.",
            "max_decimal_places": "Give at most six places after the point.",
            "max_whole_digits": "Give at most six places before the point.",
        },
    )


class CredentialForm(ServiceErrorsMixin, forms.Form):
    """A credential to store, or (with `stored`) to change: then the secret that is not typed stays as it is."""

    name = _text("Name", max_length=200, required="Say what to call it in lists.", placeholder="Judge")
    base_url = _text("Base URL", max_length=2000, required="Give the server’s URL.")
    model = _text("Model", max_length=200, required="Name the model to ask there.", placeholder="gpt-4o-mini")
    account = _text(
        "Auth ID",
        max_length=40,
        required="Give the account’s Auth ID.",
        placeholder="MAXXXXXXXXXXXXXXXXXX",
        help_text="Plivo’s console shows it beside the Auth Token: MA or SA and 18 letters or digits.",
    )
    provider = forms.ChoiceField(
        label="Forge",
        choices=ProviderCredential.Provider.choices,
        error_messages={"required": "Choose one.", "invalid_choice": "Choose one of the list."},
    )
    secret = forms.CharField(
        max_length=4000,
        strip=False,
        # As it is typed nobody may fill in a stored password, or offer to store this one.
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "spellcheck": "false"}),
        error_messages={"required": "Give the secret.", "max_length": "Use 4000 characters at most."},
    )
    prompt_price = _price("Price of tokens in")
    completion_price = _price("Price of tokens out")

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        kind: Kind,
        stored: ProviderCredential | None = None,
    ) -> None:
        initial: dict[str, Any] = {}
        if stored is not None:
            initial = {name: getattr(stored, name) for name in _FIELDS[kind] if name != "secret"}
            initial |= {name: _plain(initial[name]) for name in ("prompt_price", "completion_price") if name in initial}
        super().__init__(data, initial=initial)
        self.kind, self.stored = kind, stored
        kept = [name for name in _FIELDS[kind] if stored is None or name not in _FIXED]
        self.fields = {name: self.fields[name] for name in kept}
        secret = self.fields["secret"]
        secret.label = _SECRET_WORDS[kind]
        if stored is not None:
            secret.required = False
            secret.help_text = "Leave it empty to keep the one that is stored. That one is never shown."
        else:
            secret.help_text = "Stored sealed. No page and no answer of the API shows it again."
        if kind == Kind.PLIVO:
            name = self.fields["name"]
            name.required, name.help_text = False, "What to call it in lists, if not by its Auth ID."
            name.widget.attrs["placeholder"] = "Main account"
        if kind in (Kind.LLM, Kind.TTS):
            self.fields[
                "base_url"
            ].help_text = "An OpenAI-compatible server, up to what comes before /chat/completions or /audio/speech."
            self.fields["base_url"].widget.attrs["placeholder"] = "https://api.openai.com/v1"
        if kind == Kind.TTS:
            self.fields["model"].widget.attrs["placeholder"] = "gpt-4o-mini-tts"
            self.fields["name"].widget.attrs["placeholder"] = "Corrections’ voice"
        if kind == Kind.FORGE:
            base_url = self.fields["base_url"]
            base_url.label, base_url.required = "API of your own server", stored is not None
            base_url.help_text = "Leave it empty for github.com or gitlab.com."
            base_url.widget.attrs["placeholder"] = FORGE_APIS[ProviderCredential.Provider.GITHUB]
            self.fields["name"].widget.attrs["placeholder"] = "Fixes"

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        prices = [name for name in ("prompt_price", "completion_price") if name in self.fields]
        given = [name for name in prices if cleaned.get(name) is not None]
        if len(given) == 1 and not self.errors.keys() & set(prices):
            (missing,) = set(prices) - set(given)
            self.add_error(missing, "Give both prices or none: what calls cost is shown with both only.")
        return cleaned

    def mark_errors(self) -> None:
        super().mark_errors()
        if self.errors and self.data.get("secret") and "secret" not in self.errors:
            # What was typed is kept, but for this.
            self["secret"].help_text = "Type it again: a secret is not sent back to a page."

    def given(self) -> dict[str, Any]:
        """What is to be stored, by the names of the service."""
        cleaned = self.cleaned_data
        fields = {name: cleaned[name] for name in self.fields if name in cleaned}
        if self.kind == Kind.FORGE and not fields["base_url"]:
            fields["base_url"] = None
        if self.stored is not None:
            secret = fields.pop("secret")
            if secret:
                fields["api_key"] = secret
            if self.kind == Kind.PLIVO and not fields["name"]:
                del fields["name"]
        elif self.kind == Kind.FORGE:
            fields["provider"] = ProviderCredential.Provider(fields["provider"])
        return fields


def _plain(price: Any) -> str:
    """A price without the zeros that the database adds."""
    return "" if price is None else format(price.normalize(), "f")
