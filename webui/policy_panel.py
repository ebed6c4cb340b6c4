"""The test panel beside a policy's version: a turn that is typed, or turns of past calls, judged by what the page says.

It asks as `POST /review` does: counted in the tenant's usage, within its limits, and nothing is done about the verdict.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast
from uuid import UUID

from django import forms
from django.core.exceptions import ValidationError
from django.http import QueryDict

from mirror_saas.errors import InvalidInput
from supervision.engine.config import PolicyConfig
from supervision.engine.context import HistoryEntry, Role, ToolCallIntent, TurnPayload, Verdict
from supervision.models import Call
from supervision.selectors.calls import CallFilters, CallNotFound, call_get, call_list
from supervision.selectors.policies import VersionContent
from supervision.selectors.turn_scenes import TurnNotFound, TurnScene, past_turns, turn_scene
from supervision.selectors.usage import Price, model_prices
from supervision.stream import frames
from webui.forms import ErrorAwareMixin
from webui.policy_editor import TypedContent
from webui.presenters.policy_try import PastRow, Tried, past_row, tried

CALLS_SHOWN: Final = 8
TURNS_SHOWN: Final = 100
HISTORY_LINES: Final = 60
PREFIX: Final = "try"
DO: Final = f"{PREFIX}-do"
_ROLES: Final = ("customer", "agent", "tool", "mirror")


class TypedTurnForm(ErrorAwareMixin, forms.Form):
    """A turn that somebody makes up."""

    customer = forms.CharField(
        label="The caller says",
        required=False,
        max_length=frames.MAX_TEXT,
        widget=forms.Textarea(attrs={"rows": 2, "placeholder": "Can I have my money back?"}),
    )
    agent = forms.CharField(
        label="The agent is about to say",
        required=False,
        max_length=frames.MAX_TEXT,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "Sure, I have refunded the full price."}),
    )
    tool = forms.CharField(
        label="and to call the tool",
        required=False,
        max_length=frames.MAX_ID,
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false", "placeholder": "charge_card"}),
    )
    args = forms.CharField(
        label="with the arguments",
        required=False,
        max_length=frames.MAX_TEXT,
        widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false", "placeholder": '{"amount": 45}'}),
        help_text="A JSON object.",
    )
    history = forms.CharField(
        label="Before that",
        required=False,
        max_length=frames.MAX_TEXT,
        widget=forms.Textarea(attrs={"rows": 3, "placeholder": "customer: My pizza was cold.\nagent: I am sorry."}),
        help_text="One line each, oldest first, with who it was: customer, agent, tool or mirror.",
    )
    language = forms.CharField(
        label="Language",
        required=False,
        max_length=35,
        widget=forms.TextInput(attrs={"autocomplete": "off", "placeholder": "en"}),
    )
    anyway = forms.BooleanField(label="Ask the judge even where the pre-gate would let the turn pass", required=False)

    def __init__(self, data: QueryDict | None = None, *, kept: QueryDict | None = None) -> None:
        """`kept` is what was typed while something else is asked about: it stays, and nothing of it is wrong yet."""
        initial = {name: kept[f"{PREFIX}-{name}"] for name in self.base_fields if kept and f"{PREFIX}-{name}" in kept}
        super().__init__(data, prefix=PREFIX, initial=initial)

    def clean_args(self) -> dict[str, Any]:
        text = self.cleaned_data["args"].strip()
        try:
            args = json.loads(text or "{}")
        except (ValueError, RecursionError):
            args = None
        if not isinstance(args, dict):
            raise ValidationError('Write a JSON object, such as {"amount": 45}, or leave it empty.')
        return args

    def clean_history(self) -> tuple[HistoryEntry, ...]:
        entries = []
        for number, line in enumerate(self.cleaned_data["history"].splitlines(), 1):
            if not line.strip():
                continue
            role, colon, text = line.partition(":")
            if not colon or role.strip().casefold() not in _ROLES or not text.strip():
                raise ValidationError(f"Line {number}: begin it with customer:, agent:, tool: or mirror:.")
            entries.append(HistoryEntry(cast(Role, role.strip().casefold()), text.strip()))
        return tuple(entries[-HISTORY_LINES:])

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        if not self.errors and not cleaned["agent"].strip() and not cleaned["tool"].strip():
            self.add_error("agent", "Write what the agent says, or name the tool that it calls.")
        if not self.errors and cleaned["args"] and not cleaned["tool"].strip():
            self.add_error("tool", "Name the tool that these arguments are for.")
        return cleaned

    def payload(self) -> TurnPayload:
        cleaned = self.cleaned_data
        name = cleaned["tool"].strip()
        tools = [ToolCallIntent(id="typed", name=name, args=cleaned["args"])] if name else []
        return TurnPayload(
            customer_text=cleaned["customer"],
            agent_text=cleaned["agent"],
            tool_calls=tools,
            history=cleaned["history"],
            turn_id="typed",
            language=cleaned["language"].strip() or "en",
        )


@dataclass(slots=True)
class Panel:
    """What the panel shows. `refused` says why nothing was judged."""

    form: TypedTurnForm
    query: str = ""
    calls: Sequence[Call] = ()
    call: Call | None = None
    past: list[PastRow] = field(default_factory=list)
    more_turns: bool = False
    result: Tried | None = None
    refused: str = ""
    scene: TurnScene | None = None
    """The past turn that is asked about."""

    def row(self) -> PastRow | None:
        """The past turn that was asked about, as its row."""
        if self.scene is None:
            return None
        return next((row for row in self.past if row.id == self.scene.past.turn.id), None)


def panel_opened(query: Mapping[str, str]) -> Panel:
    """The panel as a page is loaded: `?call=` opens a call, `?turn=` the call of a turn."""
    panel = Panel(TypedTurnForm())
    try:
        if query.get("turn"):
            panel.scene = turn_scene(turn_id=UUID(query["turn"]))
            _open(panel, panel.scene.call.id)
        elif query.get("call"):
            _open(panel, UUID(query["call"]))
    except (ValueError, TurnNotFound, CallNotFound):
        panel.scene = None
    if panel.call is None:
        _find(panel)
    return panel


def panel_kept(data: QueryDict) -> Panel:
    """The panel as it was while something else on its page was sent."""
    panel = Panel(TypedTurnForm(kept=data))
    try:
        if call_id := data.get(f"{PREFIX}-call"):
            _open(panel, UUID(call_id))
    except (ValueError, CallNotFound):
        panel.call = None
    if panel.call is None:
        _find(panel)
    return panel


def panel_sent(data: QueryDict) -> tuple[Panel, TurnPayload | None]:
    """The panel after one of its buttons, and the turn to judge if there is one.

    Raises TurnNotFound and CallNotFound.
    """
    verb, _, what = data.get(DO, "").partition(".")
    form = TypedTurnForm(data) if verb == "typed" else TypedTurnForm(kept=data)
    panel = Panel(form, query=data.get(f"{PREFIX}-q", "").strip())
    payload = None
    if verb == "turn":
        panel.scene = turn_scene(turn_id=_uuid(what, TurnNotFound))
        _open(panel, panel.scene.call.id)
        payload = panel.scene.payload
    elif verb == "call":
        _open(panel, _uuid(what, CallNotFound))
    elif verb == "typed":
        if panel.form.is_valid():
            payload = panel.form.payload()
        kept = data.get(f"{PREFIX}-call", "")
        if kept:
            _open(panel, _uuid(kept, CallNotFound))
    if panel.call is None:
        _find(panel)
    return panel, payload


def panel_took(panel: Panel, verdict: Verdict, payload: TurnPayload, content: VersionContent, *, model: str) -> None:
    """Show what the judge said; `model` was asked."""
    config = PolicyConfig(**{**content.config, "policies": tuple(content.rules)})
    model = verdict.model or model
    price: Price | None = model_prices(models=[model]).get(model)
    result = tried(verdict, payload, config, price)
    if panel.scene is None:
        panel.result = result
        return
    turn_id = panel.scene.past.turn.id
    panel.past = [past_row(panel.scene.past, result) if row.id == turn_id else row for row in panel.past]


def content_asked(content: VersionContent, *, anyway: bool) -> TypedContent:
    """The content that is judged by; with `anyway` the judge is asked about every turn."""
    typed = TypedContent(
        rules=list(content.rules),
        config=content.config,
        llm_credential_id=content.llm_credential_id,
        fallback_credential_id=content.fallback_credential_id,
        note="",
    )
    return replace(typed, config={**content.config, "tiered_scoring_enabled": False}) if anyway else typed


def _open(panel: Panel, call_id: UUID) -> None:
    panel.call = call_get(call_id=call_id)
    turns = past_turns(call_id=call_id, limit=TURNS_SHOWN + 1)
    panel.more_turns = len(turns) > TURNS_SHOWN
    panel.past = [past_row(past) for past in turns[:TURNS_SHOWN]]
    asked = panel.scene
    if asked is not None and all(row.id != asked.past.turn.id for row in panel.past):
        panel.past.append(past_row(asked.past))


def _find(panel: Panel) -> None:
    try:
        panel.calls = call_list(limit=CALLS_SHOWN, filters=CallFilters(text=panel.query or None)).items
    except InvalidInput as error:
        panel.refused = str(error)


def _uuid(text: str, missing: type[Exception]) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise missing from None
