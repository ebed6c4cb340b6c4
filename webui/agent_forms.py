"""Forms about voice agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, cast
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError

from supervision.models import Agent, Mode, OnFailure, Track
from supervision.services.agents import AUDIO_FORMATS, MAX_HEADER_BYTES, MAX_REDIALS, SECRET_CHARS, AgentFields
from webui.forms import ServiceErrorsMixin

# Values of a list with the words that stand for them.
Choices = Sequence[tuple[str, str]]

FORMAT_WORDS: Final = dict(
    zip(
        AUDIO_FORMATS,
        ("µ-law, 8 kHz: what telephones speak", "L16, 8 kHz", "L16, 16 kHz: better for recognition"),
        strict=True,
    )
)
MODE_WORDS: Final = {
    Mode.LIVE: "Live: judges and steps in",
    Mode.SHADOW: "Shadow: judges, and never steps in",
}
TRACK_WORDS: Final = {
    Track.LIVE: "The live version",
    Track.SHADOW: "The shadow version, while there is one",
}
FAILURE_WORDS: Final = {
    OnFailure.CLOSE: "Close the stream: Plivo goes on with the XML behind it",
    OnFailure.HANGUP: "Hang up (needs a Plivo account under Credentials)",
    OnFailure.TRANSFER: "Go on with other XML (needs a Plivo account)",
}
OVERLAPS: Final = {
    "0": "end now",
    "1": "go on for 1 hour",
    "24": "go on for 1 day",
    "168": "go on for 7 days",
    "720": "go on for 30 days",
}
_INVALID_CHOICE: Final = {"invalid_choice": "Choose one of the list."}
_ONE_LINE: Final = "Use one line, without control characters."
# Headers as text have a colon, a blank and a line's end more each.
_HEADERS_TEXT_CHARS: Final = 2 * MAX_HEADER_BYTES


class _Word(forms.CharField):
    """One line of text of at most `chars` characters."""

    def __init__(
        self, label: str, chars: int, *, required: str | None = None, placeholder: str = "", **kwargs: Any
    ) -> None:
        attributes = {"autocomplete": "off", **({"placeholder": placeholder} if placeholder else {})}
        super().__init__(
            label=label,
            max_length=chars,
            required=required is not None,
            widget=forms.TextInput(attrs={**attributes, **kwargs.pop("attrs", {})}),
            error_messages={
                "required": required or "",
                "max_length": f"Use {chars} characters at most.",
                "null_characters_not_allowed": _ONE_LINE,
            },
            **kwargs,
        )


def headers_of(text: str) -> dict[str, str]:
    """Headers that were typed as `Name: value`, one a line. Raises ValidationError, which repeats no value."""
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise ValidationError(f"Line {number} has no colon; write a header as Name: value.")
        if name.strip() in headers:
            raise ValidationError(f"Line {number} gives a header that another line gives.")
        headers[name.strip()] = value.strip()
    return headers


class AgentForm(ServiceErrorsMixin, forms.Form):
    """All of an agent but its keys. With `agent` it is a change: the form carries what it was when the page was made,
    and `changed()` has only what the person changed, so that two who change different things both succeed."""

    name = _Word("Name", 200, required="Give the agent a name.", placeholder="Front desk")
    upstream_url = _Word(
        "WebSocket URL",
        2000,
        required="Give the URL that the agent listens at.",
        placeholder="wss://agents.example.com/front-desk",
        help_text="Where Mirror dials the agent for each call: ws:// or wss://.",
        attrs={"spellcheck": "false", "inputmode": "url"},
    )
    headers = forms.CharField(
        label="Headers",
        required=False,
        max_length=_HEADERS_TEXT_CHARS,
        widget=forms.Textarea(attrs={"rows": 2, "autocomplete": "off", "spellcheck": "false", "class": "mono"}),
        error_messages={
            "max_length": f"Give headers of {MAX_HEADER_BYTES} bytes at most.",
            "null_characters_not_allowed": "A header has visible ASCII characters only.",
        },
    )
    headers_clear = forms.BooleanField(label="Remove the headers that are stored", required=False)
    signing_secret = _Word(
        "Signing secret",
        SECRET_CHARS,
        help_text="What X-Mirror-Signature is made with, so that the agent knows that Mirror calls. Leave it empty and"
        " one is made; it is shown once, on the next page.",
        attrs={"spellcheck": "false", "class": "mono"},
    )
    language = _Word(
        "Language", 35, required="Give a language tag such as en or pt-BR.", help_text="A tag such as en, en-GB, pt-BR."
    )
    audio_format = forms.ChoiceField(
        label="Audio",
        choices=list(FORMAT_WORDS.items()),
        error_messages=_INVALID_CHOICE,
        help_text="What Plivo is asked to stream.",
    )
    bidirectional = forms.BooleanField(
        label="The stream has a way back for audio",
        required=False,
        help_text="Untick it for a <Stream> of your own with bidirectional=false: Mirror then speaks by Plivo’s Speak"
        " API.",
    )
    mode = forms.ChoiceField(
        label="Mode",
        choices=[(mode.value, words) for mode, words in MODE_WORDS.items()],
        error_messages=_INVALID_CHOICE,
    )
    policy_id = forms.TypedChoiceField(
        label="Policy",
        required=False,
        coerce=UUID,
        empty_value=None,
        error_messages=_INVALID_CHOICE,
        help_text="The rules that its turns are judged by.",
    )
    policy_track = forms.ChoiceField(
        label="Version that new calls get",
        choices=[(track.value, words) for track, words in TRACK_WORDS.items()],
        error_messages=_INVALID_CHOICE,
    )
    tts_credential_id = forms.TypedChoiceField(
        label="Voice of corrections, from",
        required=False,
        coerce=UUID,
        empty_value=None,
        error_messages=_INVALID_CHOICE,
    )
    voice = _Word("Voice", 200, help_text="The voice’s name there. Empty: its default.")
    redials = forms.IntegerField(
        label="Dial again, times",
        min_value=0,
        max_value=MAX_REDIALS,
        error_messages={
            "required": f"Give 0 to {MAX_REDIALS}.",
            "invalid": f"Give a whole number from 0 to {MAX_REDIALS}.",
            "min_value": f"Give 0 to {MAX_REDIALS}.",
            "max_value": f"Give 0 to {MAX_REDIALS}.",
        },
        help_text="How often an agent that cannot be reached, or whose socket breaks, is dialled again.",
    )
    failure_message = _Word(
        "Then the caller hears",
        300,
        placeholder="I am sorry, something went wrong. Please call again later.",
        help_text="Empty: nothing.",
    )
    on_failure = forms.ChoiceField(
        label="And the call",
        choices=[(end.value, words) for end, words in FAILURE_WORDS.items()],
        error_messages=_INVALID_CHOICE,
    )
    failure_transfer_url = _Word(
        "URL of that XML",
        2000,
        placeholder="https://example.com/fallback.xml",
        help_text="For a call that goes on with other XML. Plivo asks for it by POST.",
        attrs={"spellcheck": "false", "inputmode": "url"},
    )

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        policies: Choices,
        voices: Choices,
        agent: Agent | None = None,
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        self.agent = agent
        super().__init__(data, initial={**_initial(agent), **(initial or {})})
        _choose(self.fields["policy_id"], [("", "None: its turns are not judged"), *policies])
        _choose(self.fields["tts_credential_id"], [("", "Mirror’s own voice"), *voices])
        if agent is None:
            del self.fields["headers_clear"]
            self.fields["headers"].help_text = (
                "Sent when the agent is dialled, such as a login. One a line: Name: value. Stored sealed, never shown"
                " again."
            )
        else:
            del self.fields["signing_secret"]
            stored = agent.headers_sealed is not None
            if not stored:
                del self.fields["headers_clear"]
            self.fields["headers"].help_text = (
                "There are headers, which are not shown. What you type here replaces all of them."
                if stored
                else "Sent when the agent is dialled, such as a login. One a line: Name: value. Stored sealed, never"
                " shown again."
            )
            for name, field in self.fields.items():
                field.show_hidden_initial = not name.startswith("headers")

    def clean_headers(self) -> dict[str, str]:
        return headers_of(str(self.cleaned_data["headers"]))

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if cleaned.get("headers_clear") and cleaned.get("headers"):
            self.add_error("headers", "Either type headers, or have those that are stored removed.")
        return cleaned

    def refuse(self, error: ValidationError) -> None:
        if self.agent is not None and "headers" in getattr(error, "error_dict", {}) and not self.data.get("headers"):
            error = ValidationError(
                {
                    "headers": "The agent moves to another server, and its headers may hold a login: type them again,"
                    " or have those that are stored removed."
                }
            )
        super().refuse(error)

    def all(self) -> AgentFields:
        """What a new agent is made of, but for its name, URL and signing secret."""
        return self._fields(set(self.fields) - {"name", "upstream_url", "signing_secret"})

    def changed(self) -> AgentFields:
        """What the person changed."""
        return self._fields(set(self.changed_data) - {"headers_clear"}) | (
            {"headers": {}} if self.cleaned_data.get("headers_clear") else {}
        )

    def _fields(self, names: set[str]) -> AgentFields:
        words = {"mode": Mode, "policy_track": Track, "on_failure": OnFailure}
        given = {name: self.cleaned_data[name] for name in names}
        for name, kind in words.items():
            if name in given:
                given[name] = kind(given[name])
        return cast(AgentFields, given)


def _initial(agent: Agent | None) -> dict[str, Any]:
    if agent is None:
        return {
            "language": "en",
            "audio_format": AUDIO_FORMATS[0],
            "bidirectional": True,
            "mode": Mode.LIVE.value,
            "policy_track": Track.LIVE.value,
            "redials": 2,
            "on_failure": OnFailure.CLOSE.value,
        }
    return {
        name: getattr(agent, name)
        for name in AgentForm.base_fields
        if name not in ("headers", "headers_clear", "signing_secret")
    }


def _choose(field: forms.Field, choices: Choices) -> None:
    assert isinstance(field, forms.ChoiceField)
    field.choices = list(choices)


class AgentPolicyForm(ServiceErrorsMixin, forms.Form):
    """Which policy judges an agent's new calls: for who may change policies."""

    policy_id = forms.TypedChoiceField(
        label="Policy", required=False, coerce=UUID, empty_value=None, error_messages=_INVALID_CHOICE
    )
    policy_track = forms.ChoiceField(
        label="Version that new calls get",
        choices=[(track.value, words) for track, words in TRACK_WORDS.items()],
        error_messages=_INVALID_CHOICE,
    )

    def __init__(
        self,
        data: Mapping[str, Any] | None = None,
        *,
        policies: Choices,
        initial: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(data, initial=dict(initial or {}))
        _choose(self.fields["policy_id"], [("", "None: its turns are not judged"), *policies])


class StreamKeyForm(ServiceErrorsMixin, forms.Form):
    """A new stream key, and how long the ones before it go on."""

    service_fields = {"overlap": "overlap_h"}  # noqa: RUF012

    overlap_h = forms.ChoiceField(
        label="Keys before it",
        choices=list(OVERLAPS.items()),
        initial="24",
        error_messages={**_INVALID_CHOICE, "required": "Choose one of the list."},
    )

    def overlap(self) -> timedelta:
        return timedelta(hours=int(self.cleaned_data["overlap_h"]))


class SigningSecretForm(ServiceErrorsMixin, forms.Form):
    """The secret to sign with from the next call on."""

    signing_secret = _Word(
        "New secret",
        SECRET_CHARS,
        help_text="16 to 200 visible characters without spaces, which the agent knows already. Empty: one is made.",
        attrs={"spellcheck": "false", "class": "mono"},
    )


class AgentFilterForm(forms.Form):
    """Which agents the list shows. It reads the URL: a part that is wrong filters nothing and says why."""

    name = _Word("Name", 200)
    policy = forms.TypedChoiceField(
        required=False, coerce=UUID, empty_value=None, error_messages={"invalid_choice": "Choose one of the list."}
    )

    def __init__(self, data: Mapping[str, Any], *, policies: Choices) -> None:
        super().__init__(data)
        _choose(self.fields["policy"], [("", "Any policy"), *policies])
        self.is_valid()

    def query(self) -> list[tuple[str, str]]:
        """The filters as they stand in the URL."""
        return [(name, self.data[name]) for name in self.fields if self.data.get(name)]

    @property
    def active(self) -> bool:
        return bool(self.query())
