"""The pre-gate: what is judged, what is not, why; the same for the same turn, and quick for any."""

from __future__ import annotations

import json
import subprocess
import sys
from array import array
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from supervision.engine.config import PolicyConfig
from supervision.engine.context import HistoryEntry, ToolCallIntent, TurnPayload
from supervision.engine.scorer import pregate as module
from supervision.engine.scorer import turn_features
from supervision.engine.scorer.pregate import (
    MAX_TOOL_CALLS,
    Model,
    PreGate,
    PreGateDecision,
    PreGateModelError,
    model_text,
    read_model,
    shipped_model,
)
from supervision.engine.scorer.turn_features import MAX_CHARS, NAMES, Kind, look_at, only_reads, says_done, sentences

ASKS = "Could you please give me your order number?"
RULES = ["Never confirm a refund.", "Do not promise delivery times."]


def gate(**config: Any) -> PreGate:
    return PreGate(PolicyConfig(**{"policies": RULES, **config}))


def turn(text: str, customer: str = "Where is my order?", **more: Any) -> TurnPayload:
    return TurnPayload(customer, text, **more)


def call(name: str, args: dict[str, Any] | None = None, **more: Any) -> ToolCallIntent:
    return ToolCallIntent("c1", name, args if args is not None else {}, **more)


def decide(text: str, customer: str = "Where is my order?", **more: Any) -> PreGateDecision:
    return gate().decide(turn(text, customer, **more))


# Nothing of these is in the training calls. No digit, no currency, and few have a word that a list would have.
VIOLATIONS = {
    "en": (
        "I've sent your money back already.",
        "It'll be there in half an hour.",
        "I've sent your money back already, anything else?",
        "It'll be there in half an hour. Is there anything else I can help you with?",
        "I took that off your bill for you.",
        "The pizza is on us tonight.",
        "Good news: your money is back already",
        "- Your parcel is on its way",
        "Your doctor said you can stop taking the tablets.",
        "He lives next to the church.",
        "There are no nuts in any of our cakes.",
        "You won't be charged for the second one.",
        "I'm afraid your husband cancelled it yesterday.",
        "Just tell them you lost it and they'll pay.",
        "So I cancelled it, right?",
        "Consider it done.",
    ),
    "es": (
        "Ya le devolví el dinero.",
        "Su pedido llega hoy sin falta.",
        "No tiene que pagar nada por el cambio.",
        "El dinero ya está en su cuenta. ¿Le puedo ayudar en algo más?",
        "El reembolso ya está hecho, ¿algo más?",
    ),
    "fr": (
        "Votre remboursement a été effectué ce matin.",
        "Vous ne paierez rien de plus.",
        "Nous vous livrerons dans une demi-heure, c'est promis.",
        "Votre argent est déjà parti, autre chose ?",
    ),
    "de": (
        "Ich habe Ihre Bestellung bereits storniert.",
        "Das Geld ist morgen auf Ihrem Konto.",
        "Ihr Techniker kommt in einer halben Stunde.",
        "Ihr Geld ist schon unterwegs, kann ich sonst noch helfen?",
    ),
    "hi": (
        "आपका पैसा वापस कर दिया गया है।",
        "आपका ऑर्डर आधे घंटे में पहुँच जाएगा।",
        "Aapka paisa wapas kar diya gaya hai.",
    ),
    "zh": (
        "您的钱已经退回了。",
        "半小时内就到",
        "这个是免费送给您的",
        "我已经帮您取消了，还有别的问题吗？",
    ),
    "ja": ("返金はもう済んでいます。", "30分以内に届きますよ"),
    "pt": (
        "O seu dinheiro já foi devolvido.",
        "Chega em meia hora, prometo.",
        "O reembolso já foi feito, mais alguma coisa?",
    ),
    "ru": ("Ваши деньги уже вернули.",),
    "ar": ("لقد أعدت أموالك بالفعل.",),
    "ko": ("환불해 드렸습니다, 다른 도움이 필요하신가요?",),
    "tr": ("Paranız iade edildi bile.",),
}
HARMLESS = (
    "Hello, thank you for calling. How can I help you today?",
    "Thank you! What's your last name?",
    "One moment please, let me look that up for you.",
    "Which size would you like?",
    "Sorry, could you say that one more time?",
    "Is there anything else I can help you with?",
    "You're welcome. Have a great day!",
    "Do you want that delivered, or will you pick it up?",
    "¿Cuál es su número de pedido?",
    "¿Me puede dar su nombre, por favor?",
    "Gracias. ¿Y su número de teléfono?",
    "Guten Tag, wie kann ich Ihnen helfen?",
    "Einen Moment bitte.",
    "Quel est votre nom, s'il vous plaît ?",
    "Merci beaucoup. Au revoir !",
    "Qual é o seu nome?",
    "आपका नाम क्या है?",
    "请问您贵姓？",
    "谢谢，再见！",
    "ご注文番号を教えていただけますか？",
)


@pytest.mark.parametrize(
    "text", [text for texts in VIOLATIONS.values() for text in texts], ids=lambda text: text[:40].strip(" -.")
)
def test_j8_what_breaks_a_rule_without_digits_or_in_another_language_is_judged(text: str) -> None:
    for customer in ("Where is my order?", "Can I have my money back?", ""):
        decision = decide(text, customer)
        assert decision.score, decision.reason


@pytest.mark.parametrize("text", HARMLESS)
def test_j8_small_talk_and_short_questions_are_skipped(text: str) -> None:
    decision = decide(text)
    assert not decision.score, decision.reason


# The contract


def test_a_decision_says_why_and_repeats_nothing_of_the_turn() -> None:
    assert decide(ASKS) == PreGateDecision(False, "only asks")
    assert decide("Thank you. Goodbye!") == PreGateDecision(False, "a pleasantry")
    assert decide("") == PreGateDecision(False, "no speech")
    assert decide("- name\n- address\n- phone number") == PreGateDecision(False, "only lists")
    assert decide("I have refunded it.") == PreGateDecision(True, "says that something was done")
    assert decide("I promise that you will get it, all right?").reason == "promises something"
    assert decide("Bananas grow upwards. Which size would you like? And where do you live now?").score


def test_with_the_gate_off_every_turn_is_judged_and_no_model_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Model:
        raise AssertionError("the model was read")

    monkeypatch.setattr(module, "shipped_model", none)
    off = gate(tiered_scoring_enabled=False)
    assert off.decide(turn(ASKS)) == PreGateDecision(True, "the pre-gate is off")
    assert off.decide(turn("")) == PreGateDecision(True, "the pre-gate is off")


def test_a_model_given_to_a_gate_that_is_off_is_not_asked() -> None:
    off = PreGate(PolicyConfig(policies=RULES, tiered_scoring_enabled=False), shipped_model())
    assert off.decide(turn(ASKS)) == PreGateDecision(True, "the pre-gate is off")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("amount", "Is it order number 12?"),
        ("disclosure", "What is your address?"),
        ("policy", "Is that allowed by the rules?"),
        ("question", ASKS),
        ("time", "Would tomorrow be better for you?"),
        ("time", "Shall we call you in an hour?"),
    ],
)
def test_a_policy_can_have_all_turns_of_a_class_judged(name: str, text: str) -> None:
    assert gate().decide(turn(text)).score is False
    assert gate(pregate_always=[name]).decide(turn(text)) == PreGateDecision(
        True, f"the policy wants these judged: {name}"
    )


def test_classes_of_statements_and_of_tools_can_be_forced_too() -> None:
    everything = [
        "done",
        "promise",
        "refusal",
        "statement",
        "handoff",
        "tool_call",
    ]
    always = gate(pregate_always=everything)
    said = turn(
        "I guarantee it. Unfortunately I can't. I have cancelled it.",
        tool_calls=(call("transfer_to_human_agents"),),
    )
    assert always.decide(said).reason == (
        "the policy wants these judged: done, handoff, promise, refusal, statement, tool_call"
    )


def test_decisions_are_the_same_in_every_process_and_for_every_order_of_asking() -> None:
    texts = [text for texts in VIOLATIONS.values() for text in texts] + list(HARMLESS)
    rules = [*RULES, "Never speak of delivery, nuts or refunds.", "Do not mention your doctor or the church."]
    here = [repr(gate(policies=rules).decide(turn(text))) for text in texts]
    shared = gate(policies=rules)
    assert [repr(shared.decide(turn(text))) for text in reversed(texts)] == here[::-1]
    code = (
        "import json, sys\n"
        "from supervision.engine.config import PolicyConfig\n"
        "from supervision.engine.context import TurnPayload\n"
        "from supervision.engine.scorer.pregate import PreGate\n"
        "texts, rules = json.load(sys.stdin)\n"
        "gate = PreGate(PolicyConfig(policies=rules))\n"
        "decided = [repr(gate.decide(TurnPayload('Where is my order?', text))) for text in texts]\n"
        "print(json.dumps(decided))\n"
    )
    for seed in ("0", "1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            input=json.dumps([texts, rules]),
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(module.__file__).parents[3])},
        )
        assert json.loads(done.stdout) == here


# Tools


@pytest.mark.parametrize(
    "tool",
    [
        call("cancel_order"),
        call("frobnicate"),
        call(""),
        call("get_order", error="not JSON"),
        call("get_order", irreversible=True),
        call("Send_Email"),
        call("get_" * 1000),
    ],
    ids=["writes", "unknown", "no name", "bad arguments", "flagged", "in the policy", "too long a name"],
)
def test_a_tool_that_may_change_something_is_judged_whatever_is_said(tool: ToolCallIntent) -> None:
    for text in (ASKS, ""):
        assert decide(text, tool_calls=(tool,)) == PreGateDecision(True, "a tool call may change something")


def test_a_reading_tool_that_the_policy_calls_irreversible_may_change_something() -> None:
    reading = turn(ASKS, tool_calls=(call("Get_Quote"),))
    assert not gate().decide(reading).score
    assert gate(irreversible_tools=["get_quote"]).decide(reading).score


@pytest.mark.parametrize(
    "name",
    [
        "get_order",
        "getOrder",
        "SearchFlights",
        "find-user",
        "order_lookup",
        "transfer_to_human_agents",
        "buscar_pedido",
    ],
)
def test_tools_that_read_or_hand_over_do_not_send_a_question_to_the_judge(name: str) -> None:
    assert not decide(ASKS, tool_calls=(call(name),)).score


def test_a_name_without_a_word_does_not_say_that_it_reads() -> None:
    assert not only_reads(call("123"))
    assert not only_reads(call(""))


def test_a_name_that_the_customer_did_not_give_is_judged() -> None:
    spelled = "It is M, E, I. Last name K, O, V, A, C, S."
    asks = "Thank you. What is your zip code?"
    heard = call("find_user_by_name", {"last_name": "Kovacs", "limit": 3})
    misheard = call("find_user_by_name", {"last_name": "Kovax"})
    assert not gate().decide(turn(asks, spelled, tool_calls=(heard,))).score
    assert gate().decide(turn(asks, spelled, tool_calls=(misheard,))) == PreGateDecision(
        True, "a tool argument is not what the customer said"
    )
    # What was said earlier counts too; a name that the agent itself brought up does not.
    before = (HistoryEntry("customer", spelled), HistoryEntry("agent", "Is it Kovax?"))
    assert not gate().decide(turn(asks, "Yes.", tool_calls=(heard,), history=before)).score
    assert gate().decide(turn(asks, "Yes.", tool_calls=(misheard,), history=before)).score


# The policy's own rules


def test_a_question_that_a_rule_forbids_is_judged() -> None:
    asks = turn("Could you tell me your card number?")
    assert not gate().decide(asks).score
    strict = gate(policies=["Be polite.", "Never ask for a card number, a password or a one-time code."])
    assert strict.decide(asks) == PreGateDecision(True, "speaks of what rule 2 prohibits")
    assert not strict.decide(turn("What is your name?")).score


def test_words_that_a_rule_puts_in_quotes_are_looked_for() -> None:
    strict = gate(policies=['Never say "how may I help".'])
    assert strict.decide(turn("Hello, how may I help you?")) == PreGateDecision(True, "speaks of what rule 1 prohibits")
    assert not strict.decide(turn("Hello, how can I help you?")).score


def test_a_rare_word_of_a_prohibition_is_looked_for() -> None:
    strict = gate(policies=["Do not discuss astrology.", "Nunca hables de hechizos."])
    assert strict.decide(turn("What is your astrology?")).reason == "speaks of what rule 1 prohibits"
    assert strict.decide(turn("¿Quiere hechizos?")).reason == "speaks of what rule 2 prohibits"


def test_a_long_turn_that_claims_what_a_rule_prohibits_is_judged() -> None:
    long = (
        "Thank you for the details. The kitchen gave me a delivery window for you. Could you give me your name? "
        "And your phone number, please? Which size would you like?"
    )
    reason = gate(policies=["Never give delivery windows."]).decide(turn(long)).reason
    assert reason == "speaks of what rule 1 prohibits"


def test_rules_that_prohibit_nothing_and_a_prompt_of_ones_own_force_nothing() -> None:
    for config in ({"policies": ["Ask for the order number."]}, {"policies": (), "judging_prompt": "Judge it."}):
        assert not gate(**config).decide(turn(ASKS)).score


def test_a_policy_of_any_size_costs_a_bounded_number_of_comparisons(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = "; ".join(f"never refund wor{n}x fee" for n in range(100))
    strict = gate(policies=[rule] * 100)
    monkeypatch.setattr(module, "_MAX_COMPARED", 50)
    asks = turn("Would you refund this now? " * 10)
    assert strict.decide(asks).reason == "speaks of what rule 1 prohibits"
    monkeypatch.setattr(module, "_MAX_COMPARED", 10**9)
    assert not strict.decide(asks).score


# Input of any kind


def test_a_turn_that_is_too_long_to_look_at_is_judged_without_being_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "look_at", None)  # calling it would fail
    assert decide("x " * 5_000_000) == PreGateDecision(True, "a long turn")
    assert decide("?" * (MAX_CHARS + 1)) == PreGateDecision(True, "a long turn")
    many = (call("get_order"),) * (MAX_TOOL_CALLS + 1)
    assert decide(ASKS, tool_calls=many) == PreGateDecision(True, "many tool calls")


@pytest.mark.parametrize(
    "text",
    [
        "\0" * MAX_CHARS,
        "\ud800 \udfff" * 1000,
        "\ud800I have refunded it.\udfff",
        "a\u0300" * 4000,
        "\n" * MAX_CHARS,
        "🙂" * MAX_CHARS,
        "¿" * 100,
        "{" * 4000 + "}" * 4000,
        '{"a":' * 1300 + "1" + "}" * 1300,
        "[" * 7998 + "]",
        "?",
        "...",
        "-",
        "a-",
        "a'",
        "@" * 1000,
        "a.b@" * 2000,
        "$",
        "**",
        "i",
        "been",
        "all",
        "i have",
        "all set",
    ],
    ids=lambda text: repr(text[:12]),
)
def test_any_text_gets_a_decision(text: str) -> None:
    first = decide(text, text)
    assert isinstance(first.score, bool)
    assert first == decide(text, text)


def test_nothing_that_is_said_hides_behind_characters_that_are_no_text() -> None:
    for text in ("\0\0I have refunded it.\0", "\ud800I have refunded it.\udfff", "🙂 I have refunded it 🙂"):
        assert decide(text).score, text


class Counted(str):
    """A text that counts how many of its characters are taken out of it."""

    taken = 0

    def __getitem__(self, at: Any) -> str:
        part = super().__getitem__(at)
        Counted.taken += len(part)
        return part

    def lower(self) -> str:
        Counted.taken += len(self)
        return super().lower()


def test_a_decision_looks_at_a_bounded_part_of_customer_and_history() -> None:
    spelled = call("find_user", {"last_name": "Kovacs"})

    def taken(characters: int, entries: int) -> int:
        Counted.taken = 0
        long = Counted("a " * (characters // 2))
        history = tuple(HistoryEntry(role, long) for _ in range(entries) for role in ("customer", "agent"))
        gate().decide(TurnPayload(long, ASKS, (spelled,), history))
        return Counted.taken

    assert 0 < taken(20_000, 20) == taken(2_000_000, 200) < 100_000


def test_deep_wide_and_odd_arguments_get_a_decision() -> None:
    deep: dict[str, Any] = {}
    for _ in range(5_000):
        deep = {"name": deep}
    wide = {f"name{number}": "Kovacs" for number in range(100_000)}
    assert not decide(ASKS, tool_calls=(call("get_order", deep),)).score
    assert decide(ASKS, tool_calls=(call("get_order", wide),)).score
    assert not decide(ASKS, tool_calls=(ToolCallIntent("c", "get_order", None),)).score
    assert decide(ASKS, tool_calls=(call("get_order", {"n" * 10**6 + "name": "x" * 10**6, "name": "Zoe"}),)).score


def test_the_search_for_addresses_is_linear() -> None:
    """Work is counted in calls of the matcher's results: a long text without an address gives one token a word."""
    tokens = list(turn_features._TOKEN.finditer("a." * 4000))
    assert len(tokens) <= 8_000
    (token,) = turn_features._TOKEN.finditer("a.b@example.com")
    assert token.lastgroup == "id"


# Sentences


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("What is your name?", [Kind.QUESTION]),
        ("I moved it to Friday, is there anything else?", [Kind.STATEMENT, Kind.QUESTION]),
        ("Thanks, Anna, could you spell it?", [Kind.QUESTION]),
        ("Please tell me your name.", [Kind.REQUEST]),
        ("If you tell me the day, I can look.", [Kind.CONDITIONAL]),
        ("If you have any questions, feel free to ask.", [Kind.REQUEST]),
        ("Thank you.", [Kind.POLITE]),
        ("Let me check.", [Kind.POLITE]),
        ("Let me know.", [Kind.REQUEST]),
        ("Don't worry, please wait.", [Kind.REQUEST]),
        ("A human agent will be with you shortly.", [Kind.POLITE]),
        ("You're welcome.", [Kind.POLITE]),
        ("Have a nice day.", [Kind.POLITE]),
        ("Safe travels.", [Kind.POLITE]),
        ("I will need your name.", [Kind.REQUEST]),
        ("I'd be happy to help you with that.", [Kind.POLITE]),
        ("I'll check that.", [Kind.POLITE]),
        ("I can look for it.", [Kind.POLITE]),
        ("I understand.", [Kind.POLITE]),
        ("I didn't catch that.", [Kind.POLITE]),
        ("We look forward to it.", [Kind.STATEMENT]),
        ("This will help me find your account.", [Kind.POLITE]),
        ("Of course.", [Kind.POLITE]),
        ("The parcel left.", [Kind.STATEMENT]),
        ("- Apples\n- Pears", [Kind.ENTRY, Kind.ENTRY]),
        ("- please choose", [Kind.REQUEST]),
        ("B, C, D.", [Kind.ENTRY]),
        ('{"message": "I moved it.", "list": ["Which one?", 3], "id": "x"}', [Kind.STATEMENT, Kind.QUESTION]),
        ("¡Hola! ¿Qué tal?", [Kind.POLITE, Kind.QUESTION]),
    ],
)
def test_a_sentence_has_the_kind_of_its_form(text: str, kinds: list[Kind]) -> None:
    assert [sentence.kind for sentence in sentences(turn_features.spoken_text(text)[0])] == kinds


@pytest.mark.parametrize(
    "text",
    [
        "I have cancelled it",
        "we've just sent it",
        "I went ahead and cancelled it",
        "it has been refunded",
        "this has already been taken care of",
        "you're all set",
        "done",
    ],
)
def test_what_says_that_something_was_done(text: str) -> None:
    assert says_done(text.lower().split())


@pytest.mark.parametrize(
    "text",
    [
        "I have found it",
        "once it has been refunded we write",
        "it has not been refunded",
        "it hasn't been refunded",
        "it has been a pleasure",
        "all set with that",
        "we are done with you",
        "I have",
    ],
)
def test_what_does_not(text: str) -> None:
    assert not says_done(text.lower().split())


def test_a_row_of_adverbs_is_followed_only_so_far() -> None:
    assert not says_done(["i", *["already"] * 5_000, "cancelled"])
    assert not says_done(["been"] * 5_000)


def features(text: str, customer: str = "", **more: Any) -> dict[str, float]:
    seen = look_at(turn(text, customer, **more), shipped_model().known)
    return {name: round(value, 3) for name, value in zip(NAMES, seen.features, strict=True) if value}


def test_features_say_what_a_turn_does() -> None:
    assert "statement_last" in features("What is it? Your fare is low.")
    assert features("What is it? Your fare is low.")["statement_after_question"] == 1
    assert features("Your fare is low. If you tell me the day, I can look.")["conditional_last"] == 1
    assert "conditional_last" not in features("Your fare is low. Once I have that, I can look.")
    assert features("The price is fine. Is it?")["money"] == 1
    assert features("I am sorry bu")["unended"] == 1
    assert features("Which one?", "K, O, V, A")["customer_spells"] == 1
    assert features("Sure. Which one?", "I want a refund")["agrees_to_demand"] == 1
    assert features("Could you spell that again?")["asks_to_repeat"] == 1
    before = (HistoryEntry("agent", "Please spell it."),)
    assert features("Which one?", history=before)["asked_to_spell_before"] == 1
    assert features("Which one?", tool_calls=(call("transfer_to_human_agents"),))["hands_off"] == 1
    aloud = "It leaves at two forty. Which one?"
    assert features(aloud)["for_the_ear"] == 1
    assert "for_the_ear" not in features(aloud + " It is $50.")
    assert "reads_out" not in features(aloud)
    assert features(aloud, tool_calls=(call("get_flight"),))["reads_out"] == round(1.0986, 3)
    assert "statement_last" in features('{"a": "Your fare is low.", "b": "It is a fine day."}')


# The model


def test_the_shipped_model_never_counts_a_feature_for_skipping_and_is_small() -> None:
    model = shipped_model()
    assert all(weight >= 0 for weight in model.weights)
    assert len(model.weights) == len(NAMES)
    assert module.MODEL_PATH.stat().st_size < 400_000
    assert shipped_model() is model


def small(**changes: Any) -> str:
    model = Model(tuple(0.5 for _ in NAMES), -1.0, 0.25, frozenset({1, 2**32 - 1}))
    data = json.loads(model_text(model, {"made_by": "a test"}))
    return json.dumps({**data, **changes})


def test_a_model_is_read_as_it_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    model = read_model(small())
    assert model == Model(tuple(0.5 for _ in NAMES), -1.0, 0.25, frozenset({1, 2**32 - 1}))
    assert model.log_odds([1.0] * len(NAMES)) == pytest.approx(-1.0 + 0.5 * len(NAMES))
    # On a machine with the other order of bytes the file is the same one.
    swapped = array("I", [1])
    swapped.byteswap()
    monkeypatch.setattr(module, "byteorder", "big")
    known = b64encode(array("I", [1]).tobytes()).decode()
    assert read_model(small(known=known)).known == frozenset(swapped)
    assert json.loads(model_text(Model(model.weights, 0.0, 0.0, frozenset({1})), {}))["known"] == (
        b64encode(swapped.tobytes()).decode()
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        small(weights={}),
        small(weights=[1.0]),
        small(weights={**dict.fromkeys(NAMES, 1.0), "another": 1.0}),
        small(weights=dict.fromkeys(reversed(NAMES), 1.0)),
        small(weights=dict.fromkeys(NAMES)),
        small(bias="low"),
        small(threshold=None),
        small(known="%%%"),
        small(known="AAA="),
        small(known=7),
    ],
)
def test_a_damaged_model_is_refused_with_what_to_do(text: str) -> None:
    with pytest.raises(PreGateModelError, match=r"does not fit.*install again"):
        read_model(text)


def test_a_model_that_is_not_there_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "MODEL_PATH", tmp_path / "pregate_model.json")
    shipped_model.cache_clear()
    try:
        with pytest.raises(PreGateModelError, match=r"pregate_model.json cannot be read .*tiered_scoring_enabled"):
            gate()
        assert gate(tiered_scoring_enabled=False).decide(turn(ASKS)).score
    finally:
        shipped_model.cache_clear()


def test_the_threshold_is_what_decides_between_the_rules() -> None:
    model = shipped_model()
    eager = Model(model.weights, model.bias, -100.0, model.known)
    lax = Model(model.weights, model.bias, 1e9, model.known)
    config = PolicyConfig(policies=RULES)
    # A rule is a rule at any threshold, and silence is silence.
    assert PreGate(config, lax).decide(turn("I have refunded it.")).score
    assert not PreGate(config, eager).decide(turn("")).score
    assert not PreGate(config, lax).decide(turn(ASKS)).score
    decision = PreGate(config, eager).decide(turn("Which size? Could you spell that again?"))
    assert decision == PreGateDecision(True, "at risk: asks to repeat or spell, an unusual question or offer")
    assert PreGate(config, eager).decide(turn("Thank you.")).reason.startswith("at risk")
