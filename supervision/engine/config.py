"""How a call is supervised: `MirrorConfig`, checked when it is made, so that a wrong value never waits for a call."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from supervision.engine.llm.protocol import LLMClient, LogprobClient
from supervision.plivo.rest import web_url_checked

Severity = Literal["low", "medium", "high"]
Delivery = Literal["stream_first", "hold_risky", "hold_all"]

DEFAULT_IRREVERSIBLE_TOOLS: tuple[str, ...] = (
    "place_order",
    "charge_card",
    "book_flight",
    "book_flights",
    "cancel_subscription",
    "send_email",
    "send_sms",
    "process_payment",
    "transfer_funds",
)

TurnClass = Literal[
    "amount",  # names a number, a price or money
    "disclosure",  # speaks of personal data: address, e-mail, account …
    "done",  # says that something was done
    "handoff",  # hands the call over to a person
    "policy",  # speaks of rules, eligibility, entitlements
    "promise",  # promises or guarantees something
    "question",  # asks a question
    "refusal",  # says that something cannot be done
    "statement",  # says anything that is not a question, request, condition, pleasantry or list
    "time",  # says when, or how long
    "tool_call",  # calls any tool
]
"""What a turn does, as far as the pre-gate can tell. Words are recognised in English."""

# Long enough for the longest policies seen (a hundred rules), short enough that no policy can fill a judge's context.
MAX_RULES = 500
MAX_RULE_CHARS = 4_000
MAX_STATEMENT_CHARS = 300
MAX_RULE_TOOLS = 50
MAX_TOOL_CHARS = 200
MAX_PROMPT_CHARS = 100_000
MAX_TENANT_CHARS = 200
MAX_BUFFER_TEXT_CHARS = 80
MAX_ESCALATION_CHARS = 200

DEFAULT_BUFFER_TEXT = "Sorry, let me make sure I got that right..."

# Numbers are taken as numbers: `True` is not a threshold, and "0.7" is a string that somebody forgot to parse.
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Millis = Annotated[int, Field(strict=True)]


if TYPE_CHECKING:
    # What may be given; the validators make tuples of it.
    Names = Sequence[str]
else:
    Names = tuple[str, ...]


class Rule(BaseModel):
    """One rule of a policy, in plain language: `text`, and how bad it is to break it (`severity`).

    `statement` says what is true of a turn that breaks the rule ("The agent confirms a refund."); `scoring="logprob"`
    asks about it. Without one, the engine makes one from `text`. `tools` names the tools that the rule is about: the
    judge is told so, and their calls are judged also where `tool_gate_enabled` is false. A rule that is not `enabled`
    is kept and not judged by.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    text: str = Field(max_length=MAX_RULE_CHARS)
    severity: Severity = "medium"
    statement: str | None = Field(default=None, max_length=MAX_STATEMENT_CHARS)
    tools: Names = Field(default=(), max_length=MAX_RULE_TOOLS)
    enabled: bool = Field(default=True, strict=True)

    @field_validator("text")
    @classmethod
    def _text_says_something(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the rule is blank; write what the agent must or must not do, or remove it")
        return text.strip()

    @field_validator("statement")
    @classmethod
    def _statement_says_something(cls, statement: str | None) -> str | None:
        if statement is not None and not statement.strip():
            raise ValueError(
                'the statement is blank; write one, such as "The agent confirms a refund.", or leave it out'
            )
        return statement and " ".join(statement.split())

    @field_validator("tools", mode="before")
    @classmethod
    def _tools_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('give a list of tool names, for instance ["charge_card"]')
        return value

    @field_validator("tools")
    @classmethod
    def _tools_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(name.strip() for name in value))
        if not all(names):
            raise ValueError("a tool name is blank; remove it")
        if any(len(name) > MAX_TOOL_CHARS or not name.isprintable() for name in names):
            raise ValueError(f"a tool name is one line of at most {MAX_TOOL_CHARS} characters")
        return names


if TYPE_CHECKING:
    # What may be given; `rules` and the validators make tuples of it.
    Rules = Sequence[Rule | str]
    TurnClasses = Sequence[TurnClass]
else:
    Rules = tuple[Rule, ...]
    TurnClasses = tuple[TurnClass, ...]


Secrets = Callable[[str], str | Awaitable[str]]
"""Finds a secret by its name."""


class PolicyConfig(BaseModel):
    """Everything about supervision that a policy's author decides: `MirrorConfig` without the model and the tenant.

    This is what is stored with a policy version. Raises `pydantic.ValidationError`, which names the field.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True, use_attribute_docstrings=True
    )

    policies: Rules = Field(default=(), max_length=MAX_RULES)
    """The rules, as strings or `Rule`s (`rules` has those that are enabled). At least one enabled one, unless there is
    a `judging_prompt`."""
    judging_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS)
    """A judging prompt of one's own instead of `policies`. `{customer_text}`, `{primary_response}`,
    `{tool_calls_json}` and `{history_summary}` become the names of the fields in which the judge finds them."""
    intervention_threshold: Seconds = Field(default=0.7, gt=0, le=1)
    """A score at or above this calls for an intervention (0 < threshold ≤ 1)."""
    cooldown_s: Seconds = Field(default=10.0, ge=0, le=3600)
    """Seconds after an intervention in which the same rule, unless its severity is `high`, does not act again."""
    semantic_review_timeout_s: Seconds = Field(default=4.0, gt=0, le=60)
    """Seconds that judging a turn may take."""
    tool_gate_enabled: bool = Field(default=True, strict=True)
    """Whether tools that are not irreversible are judged too. Irreversible ones, and those that a rule names, always
    are."""
    irreversible_tools: Names = DEFAULT_IRREVERSIBLE_TOOLS
    """Names of tools that cannot be undone; compared without regard to case."""
    tool_gate_on_failure: Literal["block", "allow"] = "block"
    """What becomes of an irreversible tool call that could not be judged, or whose permission could not be written
    down (to a state store that is down, for instance). Others are allowed then."""
    tool_gate_timeout_ms: Millis = Field(default=3000, ge=100, le=60_000)
    """Milliseconds within which the tool gate answers."""
    approval_tools: Names = ()
    """Names of tools that a person has to approve, each time, after the gate let them pass; compared without regard to
    case. In the library the `approver` of the `Supervisor` asks; without one they are refused."""
    approval_timeout_ms: Millis = Field(default=60_000, ge=1_000, le=600_000)
    """Milliseconds that a tool call waits for a person at most; less when the agent waits for less (`timeout_ms`)."""
    approval_on_silence: Literal["deny", "allow"] = "deny"
    """What becomes of a tool call when nobody has decided by then."""
    approval_hold_text: str | None = Field(default=None, max_length=MAX_BUFFER_TEXT_CHARS)
    """What the caller hears while a tool call waits for a person, at most every 8 seconds and never while somebody
    speaks. None: the engine's own lines."""
    mode: Literal["live", "shadow"] = "live"
    """`shadow` judges and records, and never acts."""
    max_interventions_per_call: Millis = Field(default=3, ge=0, le=100)
    """After this many interventions in one call no words lead to another. Tools are gated all the same."""
    escalation: Literal["note", "transfer", "hangup"] = "note"
    """What happens instead of one intervention too many, which is one after `max_interventions_per_call`, or after two
    without a clean turn between them: the agent gets a `note` only, or (in the service, with a stored Plivo account)
    the caller is told so and the call is transferred or hung up. In the library always `note`."""
    escalation_url: str | None = Field(default=None, max_length=2000)
    """The XML that a transferred call goes on with. Plivo asks for it by POST."""
    escalation_text: str | None = Field(default=None, max_length=MAX_ESCALATION_CHARS)
    """What the caller is told before that. None: the engine's own lines."""
    delivery: Delivery = "stream_first"
    """When a turn's audio goes to the caller: `stream_first` at once, to be cut when its verdict is a violation;
    `hold_risky` holds the turns that the pre-gate would have judged, until their verdict or `hold_budget_ms`;
    `hold_all` holds every turn likewise."""
    hold_budget_ms: Millis = Field(default=800, ge=50, le=10_000)
    """Milliseconds that a turn is held at most (`delivery`), from its first held audio on; then it plays, and is cut
    like any other."""
    streaming_mode: bool = Field(default=False, strict=True)
    """Whether `review_stream_delta` judges at clause boundaries while the turn is generated. Otherwise streamed text is
    collected and judged when it is complete (`flush_stream`). On Mirror's stream, `mirror.delta` is judged at clause
    boundaries unless this is set to false."""
    scoring: Literal["json", "logprob"] = "json"
    """How turns are scored: `json` asks one question about all rules; `logprob` asks for one token per rule and reads
    its probability, which needs an LLM client that tells token probabilities."""
    buffer_text: str | None = Field(default=DEFAULT_BUFFER_TEXT, max_length=MAX_BUFFER_TEXT_CHARS)
    """Spoken first while a correction is prepared, best at most 1.6 seconds of speech. The default is the first line of
    English calls only; what a policy sets is the first line in every language. None: the engine's own lines."""
    tiered_scoring_enabled: bool = Field(default=True, strict=True)
    """Whether a pre-gate decides first which turns need the judge at all. Turns with a tool call that may change
    something, and the turn after an intervention, are judged in any case."""
    pregate_always: TurnClasses = ()
    """Classes of turns that the pre-gate must not skip, for instance ("amount", "refusal"): what they mean is in
    `TurnClass`."""
    judge_max_tokens: Millis = Field(default=400, ge=50, le=8_000)
    """The longest answer that the judge may give to one question, in tokens."""

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules that are judged by, in order: those that are enabled."""
        return tuple(rule for rule in cast(tuple[Rule, ...], self.policies) if rule.enabled)

    def buffer_text_for(self, language: str) -> str | None:
        """The policy's own buffer line in a call's language (a BCP 47 tag); None where the engine's own lines speak."""
        english = language.replace("_", "-").split("-", 1)[0].strip().lower() == "en"
        return self.buffer_text if english or "buffer_text" in self.model_fields_set else None

    @field_validator("policies", mode="before")
    @classmethod
    def _policies_from_strings(cls, value: Any) -> Any:
        if isinstance(value, str | bytes | Mapping):
            raise ValueError('give a list of rules, for instance policies=["Never confirm a refund."]')
        if not isinstance(value, Sequence):
            return value
        return tuple({"text": rule} if isinstance(rule, str) else rule for rule in value)

    @field_validator("judging_prompt")
    @classmethod
    def _judging_prompt_says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the prompt is blank; write one, or leave it out and give policies")
        return value

    @field_validator("scoring")
    @classmethod
    def _scoring_fits_the_prompt(cls, value: str, info: ValidationInfo) -> str:
        if value == "logprob" and info.data.get("judging_prompt") is not None:
            raise ValueError(
                '"logprob" asks about one rule at a time: give policies, or use "json" with a judging_prompt'
            )
        return value

    @field_validator("escalation_url")
    @classmethod
    def _escalation_leads_somewhere(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("escalation") == "transfer":
            raise ValueError("give the URL of the XML that a transferred call goes on with")
        return value if value is None else web_url_checked(value.strip())

    @field_validator("buffer_text", "approval_hold_text", "escalation_text")
    @classmethod
    def _buffer_text_says_something(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the line is blank; write one, or leave it out for the engine's own lines")
        return value

    @field_validator("irreversible_tools", "approval_tools", mode="before")
    @classmethod
    def _irreversible_tools_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('give a list of tool names, for instance ["place_order"]')
        return value

    @field_validator("pregate_always", mode="before")
    @classmethod
    def _pregate_always_is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError('give a list of classes of turns, for instance ["amount"]')
        return value

    @field_validator("irreversible_tools", "approval_tools")
    @classmethod
    def _irreversible_tools_are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not name.strip() for name in value):
            raise ValueError("a tool name is blank; remove it")
        return tuple(name.strip() for name in value)

    @model_validator(mode="after")
    def _rules_or_prompt(self) -> Self:
        if self.policies and self.judging_prompt is not None:
            raise ValueError("policies and judging_prompt exclude each other; give one of them")
        if not self.policies and self.judging_prompt is None:
            raise ValueError("policies is empty: give at least one rule (or a judging_prompt), else nothing is judged")
        if self.policies and not self.rules:
            raise ValueError("every rule is switched off: switch at least one on, else nothing is judged")
        return self


class MirrorConfig(PolicyConfig):
    """The only configuration of the engine: a policy, the model that judges by it, and whose it is.

        MirrorConfig(llm=OpenAIClient(api_key=..., model=...), policies=["Never confirm a refund."])

    Raises `pydantic.ValidationError`, which names the field and says what is wrong with it.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    llm: Annotated[LLMClient, SkipValidation]
    """The model that judges and writes corrections. `Supervisor.aclose` closes it, if it has an `aclose`."""
    tenant_id: str | None = Field(default=None, max_length=MAX_TENANT_CHARS)
    """Whose calls these are: passed on in `SupervisorContext`, and part of the key of a call's state."""
    secrets: Annotated[Secrets | None, SkipValidation] = None
    """Looks secrets up by name (Vault, a cloud's secret manager): `name -> str`, or an async function. Asked when a key
    given as `Secret("name")` is first needed, and again when the endpoint refuses it."""

    @field_validator("llm", mode="before")
    @classmethod
    def _llm_can_be_asked(cls, value: Any) -> Any:
        if isinstance(value, type) or not isinstance(value, LLMClient):
            raise ValueError(
                "give an LLM client, an object with `async complete_json(...)`, "
                f'such as OpenAIClient(api_key=..., model="gpt-4o-mini"); got {type(value).__name__}'
            )
        return value

    @field_validator("tenant_id")
    @classmethod
    def _tenant_is_named(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("the id is blank; give one, or leave it out")
        return value

    @field_validator("llm")
    @classmethod
    def _llm_tells_probabilities(cls, value: LLMClient, info: ValidationInfo) -> LLMClient:
        if info.data.get("scoring") == "logprob" and not isinstance(value, LogprobClient):
            raise ValueError(
                'scoring="logprob" needs an LLM client that tells token probabilities, with `async '
                f'first_token_logprobs(...)`, as OpenAIClient has; {type(value).__name__} has none: use scoring="json"'
            )
        return value

    @field_validator("secrets")
    @classmethod
    def _secrets_can_be_looked_up(cls, value: Secrets | None, info: ValidationInfo) -> Secrets | None:
        if value is not None and not callable(value):
            raise ValueError(f"give a function from a secret's name to the secret; got {type(value).__name__}")
        wanted = getattr(info.data.get("llm"), "needs_secrets", None)
        if value is None and isinstance(wanted, str):
            raise ValueError(f"the LLM client's key is Secret({wanted!r}); give a function that looks it up")
        return value

    @classmethod
    def from_stored(
        cls,
        rules: Sequence[str | Mapping[str, Any]],
        config: Mapping[str, Any],
        llm: LLMClient,
        *,
        tenant_id: str | None = None,
    ) -> Self:
        """Builds the configuration of a stored policy version.

        `rules` are strings or `{"text", "severity"}`, `config` the other fields of `PolicyConfig`. Raises
        `pydantic.ValidationError` (a `ValueError`) like the constructor, and `ValueError` when `config` brings its
        own `llm`, `policies` or `tenant_id`.
        """
        taken = {"llm", "tenant_id", "policies"} & set(config)
        if taken:
            raise ValueError(f"a stored config cannot set {', '.join(sorted(taken))}")
        return cls(**{**config, "policies": tuple(rules), "llm": llm, "tenant_id": tenant_id})

    @classmethod
    def from_env(
        cls,
        env: Mapping[str, str] | None = None,
        *,
        llm: LLMClient | None = None,
        secrets: Secrets | None = None,
        prefix: str = "MIRROR_",
    ) -> Self:
        """Builds the configuration from environment variables (`os.environ` unless `env` is given).

        Each field is `prefix` and its name: `MIRROR_INTERVENTION_THRESHOLD=0.8`, `MIRROR_TIERED_SCORING_ENABLED=false`,
        `MIRROR_IRREVERSIBLE_TOOLS=place_order,charge_card`. `MIRROR_POLICIES` is a JSON list or one rule a line;
        `MIRROR_POLICIES_FILE` and `MIRROR_JUDGING_PROMPT_FILE` name files instead. The model is `llm`, else
        `AZURE_OPENAI_ENDPOINT`, `AZURE_OPENAI_API_KEY`, `AZURE_OPENAI_DEPLOYMENT` and `OPENAI_API_VERSION`, else
        `OPENAI_API_KEY`, `OPENAI_MODEL` (or `MIRROR_MODEL`) and `OPENAI_BASE_URL`. Blank variables count as not set.

        Raises `ConfigError` (a `ValueError`), which names the variable and the field and repeats no value.
        """
        from supervision.engine import environment

        values = os.environ if env is None else env
        fields = environment.fields_from(values, cls.model_fields, prefix)
        client = environment.client_from(values, prefix) if llm is None else llm
        try:
            return cls(**fields, llm=client, secrets=secrets)
        except ValidationError as error:
            raise environment.explained(error, prefix) from error
