"""Judging a turn while it arrives: where clauses end, and what becomes of their verdicts."""

import asyncio
import unicodedata
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from supervision.engine import JudgingState, ToolCallIntent, TurnPayload, Usage, Verdict
from supervision.engine.policy.compiler import MAX_TURN_CHARS
from supervision.engine.scorer.streaming import (
    FREE_CALLS,
    MAX_CLAUSE_CHARS,
    MAX_DENSE_CLAUSE_CHARS,
    MAX_IN_FLIGHT,
    ClauseSplitter,
    StreamedTurn,
)
from tests.engine.llms import ScriptedLLM, make_call
from tests.support.virtual_time import elapsed_s, virtual_time


def clauses(*deltas: str) -> list[str]:
    """The clauses of a text that arrives in these deltas, stripped, the tail last."""
    splitter = ClauseSplitter()
    found = [clause for delta in deltas for clause in splitter.push(delta)]
    return [clause.strip() for clause in [*found, splitter.finish()] if clause.strip()]


# Where clauses end


@pytest.mark.parametrize(
    "text",
    [
        "Your total is $59.99.| Shall I book it?| Yes!",
        "That comes to $59.| Shall I book it?",
        "It is 3.5 km and costs 1,000.00 dollars.| Or 1.000,00 euros.",
        "We open at 10:30.| Do you want that?",
        "Version 2.0.1 is on 192.168.0.1 now.| Fine.",
        "Dr. Smith, Mrs. Jones and Prof. Li see you at 5 p.m. tomorrow.| Is that all right?",
        "Take fruit, e.g. Apples, i.e. Pink Ladies, vs. Pears.| Good.",
        "I live at 5 Main St. North, Apt. B, ext. 117.| You?",
        "No.| You cannot.| No. 5 is free.| So am I.| Then go.",
        "Ask J. F. Kennedy or U.S. Customs at Acme Inc. Texas.| Now.",
        "Jan. 5 or Sept. 12 will do.| Which?",
        "Bring cheese, milk, etc.| Then call.",
        "z.B. am 3. Mai im 2. Stock, Hr. Müller, ca. Mitte Mai.| Passt das?",
        "Das kostet z. B. 59,99 Euro inkl. Versand bzw. Abholung.| Und d. h. nichts.",
        "El Sr. García y la Sra. Díaz, p. ej. Juan, en EE.UU. Hoy.| Gracias.",
        "¿Quiere eso?|¡Claro!| Sí.|¿Algo más?",
        "M. Dupont et Mme. Durand sont là, cf. Article n° 400.| C'est bon ?| Oui !",
        "Il Sig. Rossi e il Dott. Bianchi, p.es. Anna.| Va bene.",
        "O Sr. Silva mora na Av. Brasil, n. 250.| Certo.",
        "Ул. Ленина, д. 3, кв. 5, т.е. Рядом, и т.д. Потом.| Спасибо.",
        "Το κόστος είναι 5 ευρώ;| Ναι, κ. Παπαδόπουλε.| Ωραία.",
        "您好。|退款已经完成！|价格是３．５元。|还有别的吗？|“好。”|谢谢。",
        "ご返金は3.5％です。|「わかりました。」|以上。",
        "네, 환불됩니다.| 아니요.",
        "هل تريد استرداد؟|نعم.| تمام",
        "आपका रिफंड हो गया।|डॉ. शर्मा आएंगे।| ठीक है।",
        "Ձեր գումարը։| Լավ։",
        "ገንዘብዎ ተመልሷል።|እሺ።",
        "Visit https://shop.example/a?b=1.2&c=3;d.| Or mail jo.doe@shop.example.co.uk.| Or www.shop.example!| Thanks.",
        "Run main.py on v1.2 of the U.S.A. site.| OK.",
        "Well... let me see.| Hmm…| Right...| Done.",
        'He said "No way."| Then he left (at once.)| "Really?" she asked.',
        "**Done.**| Your refund is _on its way!_| Anything else?",
        "Wait?!| No!!!| Yes.",
        "Sure;| I do it now.| Fine",
        "Item one|\nitem two|\r\n\r\nitem three",
        "1. Open the app.| 2. Tap Refund.| 3. Wait.",
        "Thank you 👍🏽.| It is done 🇩🇪!| Bye",
        "Stop.|\nGo.|   on",
    ],
)
def test_clauses_end_where_a_speaker_would_say_so(text: str) -> None:
    whole = text.replace("|", "")
    expected = [clause.strip() for clause in text.split("|")]
    assert clauses(whole) == expected
    assert clauses(*whole) == expected


def test_a_stop_at_the_end_of_a_delta_waits_for_what_follows() -> None:
    splitter = ClauseSplitter()
    assert splitter.push("That is $59.") == []
    assert splitter.push("99") == []
    assert splitter.push(".") == []
    assert splitter.push(" Shall") == ["That is $59.99."]
    assert splitter.rest == " Shall"
    assert splitter.finish() == " Shall"
    assert splitter.rest == ""


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("and then we go on and on " * 40, MAX_CLAUSE_CHARS),
        ("x" * 1000, MAX_CLAUSE_CHARS),
        ("ขอบคุณที่โทรมาวันนี้ผมจะคืนเงินให้คุณทั้งหมดภายในวันพรุ่งนี้โดยไม่มีค่าใช้จ่ายเพิ่มเติม" * 5, MAX_DENSE_CLAUSE_CHARS),
        ("我们已经把全部款项退回到您的账户里面了" * 20, MAX_DENSE_CLAUSE_CHARS),
        ("ແລ້ວພວກເຮົາຈະຄືນເງິນໃຫ້ທ່ານທັງໝົດ" * 10, MAX_DENSE_CLAUSE_CHARS),
        ("e\u0301" * 400, MAX_CLAUSE_CHARS),
        ("क्षि" * 100, MAX_DENSE_CLAUSE_CHARS),
        ("👨\u200d👩\u200d👧" * 60, MAX_DENSE_CLAUSE_CHARS),
        ("🇩🇪 " * 100, MAX_CLAUSE_CHARS),
        (unicodedata.normalize("NFD", "환불해드리겠습니다") * 20, MAX_DENSE_CLAUSE_CHARS),
        ("\u0301" * 500, MAX_CLAUSE_CHARS),
        (" " * 500, MAX_CLAUSE_CHARS),
        ("!" * 500, MAX_CLAUSE_CHARS),
        ("." * 500, MAX_CLAUSE_CHARS),
    ],
)
def test_text_without_stops_is_judged_after_a_bounded_length(text: str, limit: int) -> None:
    splitter = ClauseSplitter()
    found = splitter.push(text)
    assert "".join(found) + splitter.finish() == text
    assert found
    assert max(map(len, found)) <= limit
    if any(map(str.isalpha, text)):
        # Never inside of one sign.
        for clause in found[1:]:
            assert unicodedata.category(clause[0])[0] != "M"
            assert clause[0] != "\u200d"
            assert not "\u1160" <= clause[0] <= "\u11ff"
        for clause in found[:-1]:
            assert clause[-1] not in "เแโใไ\u200d्"


def test_words_stay_whole_where_there_is_no_stop() -> None:
    splitter = ClauseSplitter()
    found = splitter.push("and then we go on and on " * 40)
    assert all(clause.split()[0] in {"and", "then", "we", "go", "on"} for clause in found)
    assert all(clause.split()[-1] in {"and", "then", "we", "go", "on"} for clause in found)


def test_a_long_clause_ends_at_a_comma_a_short_one_does_not() -> None:
    long = "We have looked into everything that you told us about the order of last week"
    assert clauses(f"{long} and the refund, which is done, and so on.") == [
        f"{long} and the refund,",
        "which is done, and so on.",
    ]
    assert clauses(f"{long} and the 1,000,000 euros") == [f"{long} and the 1,000,000 euros"]
    chinese = "我们已经仔细检查了您上周提出的所有问题和订单情况"
    assert clauses(f"{chinese}，现在退款，好") == [f"{chinese}，", "现在退款，好"]


def test_the_halves_of_a_surrogate_pair_are_joined() -> None:
    assert clauses("Fine \ud83d", "\ude00. Yes") == ["Fine 😀.", "Yes"]
    assert clauses("Fine \ud83d", "", "\ude00") == ["Fine 😀"]
    assert clauses("Fine \ud83d", " and \ude00 well \ud83d") == ["Fine \ufffd and \ufffd well \ufffd"]
    assert clauses("\ud83d", "\ud83d", "\ude00") == ["\ufffd😀"]


def test_a_delta_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError, match="delta has to be a string, not NoneType"):
        ClauseSplitter().push(None)  # type: ignore[arg-type]


PIECES = st.sampled_from(
    [
        *" .!?…,;:।。？！，-—\n\"')(»¿¡aAbIzß19é世い한กเ้ा्",
        "\u0301",
        "\u200d",
        "🇩",
        "👍",
        "\U0001f3fd",
        "\ud83d",
        "\ude00",
        "Dr",
        "p.m",
        "z.B",
        "3.5",
        "no",
        "etc",
        "http://x.y/z?",
        "word ",
        "  ",
        ". ",
        "x" * 50,
        "世" * 30,
        "some more words ",
    ]
)
TEXTS = st.lists(PIECES, max_size=120).map("".join)


@given(TEXTS, st.lists(st.integers(min_value=1, max_value=90), min_size=1, max_size=30))
@example("." * 170 + " A", [1])
@example("a" * 158 + ". B", [159, 1])
@example("word " * 31 + "end." + "  x", [1])
@settings(max_examples=150, deadline=None)
def test_where_clauses_end_does_not_depend_on_how_the_deltas_were_cut(text: str, sizes: list[int]) -> None:
    at_once = ClauseSplitter()
    expected = [*at_once.push(text), at_once.finish()]
    deltas, at, turn = [], 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        deltas.append(text[at : at + size])
        at, turn = at + size, turn + 1
    in_pieces = ClauseSplitter()
    assert [*(clause for delta in deltas for clause in in_pieces.push(delta)), in_pieces.finish()] == expected
    whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    assert "".join(expected) == whole
    assert all(len(clause) <= MAX_CLAUSE_CHARS + 12 for clause in expected)


@pytest.mark.parametrize(
    "text", ["a", ".", "!", " ", ". ", ".\"'", "...", "1.", "x, ", "世", "。", "Dr. A", "\n", "e\u0301."]
)
@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_splitting_looks_at_each_character_a_bounded_number_of_times(text: str, size: int) -> None:
    def examined(chars: int) -> int:
        splitter, whole = ClauseSplitter(), text * (chars // len(text))
        for at in range(0, len(whole), size):
            splitter.push(whole[at : at + size])
        return splitter.examined

    assert examined(2_000) <= 12 * 2_000
    assert examined(20_000) <= 11 * examined(2_000)


# What becomes of the verdicts


def verdict(payload: TurnPayload, score: float | None, **more: Any) -> Verdict:
    state = more.pop("state", JudgingState.JUDGED)
    fields = {"rule": "r", "reason": "", "correction": "", "threshold": 0.7, "latency_ms": 0, "usage": Usage(10, 1)}
    return Verdict(turn_id=payload.turn_id, state=state, score=score, **{**fields, **more})


@dataclass
class Judge:
    """Scores by the words of the turn: `answers` is searched for the first that the text contains (`""`: any)."""

    answers: dict[str, Any] = field(default_factory=lambda: {"": 0.0})
    delay_s: float | Callable[[str], float] = 0.0
    asked: list[TurnPayload] = field(default_factory=list)
    cancelled: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    async def __call__(self, payload: TurnPayload) -> Verdict:
        self.asked.append(payload)
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self.delay_s(payload.agent_text) if callable(self.delay_s) else self.delay_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.in_flight -= 1
        answer = next(answer for words, answer in self.answers.items() if words in payload.agent_text)
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, JudgingState):
            return verdict(payload, None, state=answer, detail="told so")
        return verdict(payload, answer, reason=payload.agent_text)

    @property
    def texts(self) -> list[str]:
        return [payload.agent_text for payload in self.asked]


PAYLOAD = TurnPayload("Can I get a refund?", "", turn_id="t-1", language="de")


def turn_of(judge: Callable[[TurnPayload], Awaitable[Verdict]], **more: Any) -> StreamedTurn:
    return StreamedTurn(judge, PAYLOAD, **{"clause_by_clause": True, **more})


async def settle(times: int = 5) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@virtual_time
async def test_j5_a_streamed_turn_is_judged_as_the_turn_so_far_without_stalling_and_to_its_end() -> None:
    judge = Judge({"confirmed": 0.9, "": 0.0}, delay_s=0.3)
    turn = turn_of(judge)
    loop = asyncio.get_running_loop()
    started = loop.time()
    for delta in ("That is $59.", "99 in all.", " It comes", " at 5 p.m. on", " Monday. Your refund is con", "firmed"):
        assert turn.push(delta) is None
    assert loop.time() == started
    await asyncio.sleep(0)
    # "$59." / "99" is one amount, and each clause comes with all that was said before it.
    assert judge.texts == ["That is $59.99 in all.", "That is $59.99 in all. It comes at 5 p.m. on Monday."]
    final = await turn.finish()
    assert (
        judge.texts[-1] == turn.text == "That is $59.99 in all. It comes at 5 p.m. on Monday. Your refund is confirmed"
    )
    assert final.should_intervene
    assert final.reason == turn.text
    assert loop.time() - started == pytest.approx(0.3)


@virtual_time
async def test_j5_the_tail_is_judged_although_an_earlier_clause_was_flagged() -> None:
    judge = Judge({"by tomorrow": 0.95, "confirmed": 0.8, "": 0.0}, delay_s=0.1)
    turn = turn_of(judge)
    turn.push("It is confirmed. And")
    await asyncio.sleep(0.2)
    first = turn.push(" you get it")
    assert first is not None
    assert first.score == 0.8
    assert turn.push(" by tomorrow") is first is turn.violation
    final = await turn.finish()
    assert judge.texts[-1].endswith("by tomorrow")
    assert final.score == 0.95


@pytest.mark.parametrize("length", [1, 37, 76, 99, 137, 250, 600])
@pytest.mark.parametrize("clause_by_clause", [True, False])
@virtual_time
async def test_j6_every_character_of_a_streamed_turn_is_judged_however_short(
    length: int, clause_by_clause: bool
) -> None:
    text = ("I can. " * 100)[:length]
    llm = ScriptedLLM()
    call = make_call(llm, tiered_scoring_enabled=False)
    turn = StreamedTurn(call.judge_turn, PAYLOAD, clause_by_clause=clause_by_clause)
    for character in text:
        turn.push(character)
        await settle(1)
    final = await turn.finish()
    assert final.state is JudgingState.JUDGED
    assert llm.asked[-1].user["agent_text"].strip() == text.strip()
    assert turn.calls == len(llm.asked)


@virtual_time
async def test_without_clause_by_clause_only_the_whole_turn_is_judged() -> None:
    judge = Judge()
    turn = turn_of(judge, clause_by_clause=False)
    turn.push("One. Two. ")
    turn.push("Three.")
    await settle()
    assert judge.texts == []
    await turn.finish()
    assert judge.texts == ["One. Two. Three."]


@virtual_time
async def test_the_judge_gets_everything_else_of_the_payload() -> None:
    judge = Judge()
    turn = turn_of(judge)
    turn.push("One. Two")
    tools = (ToolCallIntent("t", "look_up", {}),)
    await turn.finish(TurnPayload("Really?", "not this", tools, turn_id="t-1"))
    first, whole = judge.asked
    assert (first.customer_text, first.turn_id, first.language) == ("Can I get a refund?", "t-1", "de")
    assert (whole.customer_text, whole.tool_calls, whole.agent_text) == ("Really?", tools, "One. Two")


@virtual_time
async def test_clauses_do_not_wait_for_each_other_but_share_a_question_when_many_are_under_way() -> None:
    judge = Judge(delay_s=1.0)
    turn = turn_of(judge)
    for number in range(1, 8):
        turn.push(f"This is it {number}a. ")
        await settle()
    turn.push("X")
    await settle()
    assert len(judge.asked) == MAX_IN_FLIGHT
    await asyncio.sleep(1.5)
    # One question for the four clauses that came meanwhile.
    assert len(judge.asked) == MAX_IN_FLIGHT + 1
    assert judge.texts[-1].endswith("7a.")
    assert judge.most_in_flight == MAX_IN_FLIGHT


@virtual_time
async def test_the_number_of_questions_about_one_turn_is_bounded() -> None:
    judge = Judge()
    turn = turn_of(judge)
    text = "Ok! " * (MAX_TURN_CHARS // 4)
    for at in range(0, len(text), 20):
        turn.push(text[at : at + 20])
        await settle(3)
    await turn.finish()
    assert FREE_CALLS < turn.calls == len(judge.asked) <= 46
    assert judge.texts[-1].strip() == text.strip()


@virtual_time
async def test_more_than_can_be_judged_is_not_kept() -> None:
    llm = ScriptedLLM()
    call = make_call(llm, tiered_scoring_enabled=False)
    turn = StreamedTurn(call.judge_turn, PAYLOAD, clause_by_clause=True)
    for _ in range(MAX_TURN_CHARS // 1000 + 3):
        turn.push("0123456789" * 100)
    turn.push(". More.\n")
    assert len(turn.text) == MAX_TURN_CHARS + 1
    final = await turn.finish()
    assert final.state is JudgingState.FAILED
    assert "at most 32000" in final.detail


@virtual_time
async def test_the_first_violation_is_told_as_soon_as_it_is_there() -> None:
    judge = Judge({"bad": 0.8, "": 0.0}, delay_s=0.3)
    told: list[tuple[float, Verdict]] = []
    loop = asyncio.get_running_loop()
    started = loop.time()
    turn = turn_of(judge, on_violation=lambda found: told.append((loop.time() - started, found)))
    turn.push("This is bad. So")
    await asyncio.sleep(5)
    turn.push(" is this. And")
    assert [at for at, _ in told] == [pytest.approx(0.3)]
    await turn.finish()
    assert len(told) == 1
    assert told[0][1] is turn.violation


@virtual_time
async def test_the_worst_verdict_wins_and_of_equals_the_first() -> None:
    judge = Judge({"Three": 0.75, "Two": 0.9, "One": 0.9})
    turn = turn_of(judge)
    for delta in ("One is. ", "Two is. ", "Three"):
        turn.push(delta)
        await settle()
    final = await turn.finish()
    assert (final.score, final.reason) == (0.9, "One is.")
    assert final.usage == Usage(30, 3)


@virtual_time
async def test_a_late_clause_overrides_nothing_and_nobody_waits_for_it() -> None:
    # The judge of the first clause is slow and would have called it a violation; the whole turn, judged, is clean.
    judge = Judge({"unless": 0.0, "": 0.9}, delay_s=lambda text: 0.2 if "unless" in text else 3.0)
    turn = turn_of(judge)
    turn.push("You get a refund. That")
    assert await elapsed_s(asyncio.create_task(_finish(turn, " is, unless"))) == pytest.approx(0.2)
    assert turn.violation is None
    await settle()
    assert judge.cancelled == 1
    assert judge.in_flight == 0


async def _finish(turn: StreamedTurn, tail: str) -> Verdict:
    turn.push(tail)
    return await turn.finish()


@virtual_time
async def test_a_clause_that_timed_out_does_not_matter_once_the_whole_turn_is_judged() -> None:
    judge = Judge({"whole": 0.1, "": JudgingState.TIMED_OUT})
    turn = turn_of(judge)
    turn.push("One thing. The")
    await settle()
    final = await _finish(turn, " whole")
    assert (final.state, final.score) == (JudgingState.JUDGED, 0.1)
    assert final.usage == Usage(20, 2)


@pytest.mark.parametrize("state", [JudgingState.TIMED_OUT, JudgingState.FAILED, JudgingState.SHED])
@virtual_time
async def test_clean_clauses_do_not_stand_in_for_a_whole_turn_that_was_not_judged(state: JudgingState) -> None:
    judge = Judge({"whole": state, "": 0.0}, delay_s=lambda text: 0.1 if "whole" in text else 0.5)
    turn = turn_of(judge)
    turn.push("One thing. The")
    started = asyncio.get_running_loop().time()
    final = await _finish(turn, " whole")
    assert final.state is state
    # It was worth waiting for the clause: it could have been a violation.
    assert asyncio.get_running_loop().time() - started == pytest.approx(0.5)


@virtual_time
async def test_a_clause_that_was_flagged_counts_although_the_whole_turn_could_not_be_judged() -> None:
    judge = Judge({"whole": JudgingState.FAILED, "": 0.9}, delay_s=lambda text: 0.1 if "whole" in text else 0.5)
    turn = turn_of(judge)
    turn.push("One thing. The")
    await settle()
    final = await _finish(turn, " whole")
    assert (final.state, final.score) == (JudgingState.JUDGED, 0.9)


@virtual_time
async def test_a_skipped_whole_turn_stays_skipped() -> None:
    judge = Judge({"": JudgingState.SKIPPED})
    turn = turn_of(judge)
    turn.push("Hello. There")
    assert (await turn.finish()).state is JudgingState.SKIPPED


@virtual_time
async def test_the_last_clause_is_not_asked_about_twice_when_it_was_the_whole_turn() -> None:
    judge = Judge(delay_s=0.3)
    turn = turn_of(judge)
    turn.push("Hello there. \n")
    await asyncio.sleep(0.1)
    # It is under way already …
    assert await elapsed_s(turn.finish()) == pytest.approx(0.2)
    assert judge.texts == ["Hello there."]
    turn = turn_of(judge)
    turn.push("Hello there. \n")
    await asyncio.sleep(1)
    # … or even answered.
    final = await turn.finish()
    assert (final.score, final.usage) == (0.0, Usage(10, 1))
    assert len(judge.asked) == 2


@pytest.mark.parametrize("first", [JudgingState.FAILED, ValueError("no"), asyncio.CancelledError()])
@virtual_time
async def test_a_last_clause_that_failed_is_asked_about_again(first: Any) -> None:
    judge = Judge({"": first})
    turn = turn_of(judge)
    turn.push("Hello there.\n")
    await settle()
    judge.answers = {"": 0.2}
    assert (await turn.finish()).score == 0.2
    assert turn.calls == 2


@virtual_time
async def test_an_empty_turn_has_a_verdict_too() -> None:
    call = make_call(ScriptedLLM(), tiered_scoring_enabled=False)
    turn = StreamedTurn(call.judge_turn, PAYLOAD, clause_by_clause=True)
    turn.push("")
    turn.push(" \n ")
    final = await turn.finish()
    assert (final.state, final.detail) == (JudgingState.SKIPPED, "no speech")


@virtual_time
async def test_what_the_judge_of_the_whole_turn_raises_is_raised_what_a_clauses_raises_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    judge = Judge({"whole": KeyError("refund"), "": ValueError("You get a refund")})
    turn = turn_of(judge)
    turn.push("You get a refund. The")
    await settle()
    assert "judging a clause raised ValueError" in caplog.text
    assert "refund" not in caplog.text
    with pytest.raises(KeyError):
        await _finish(turn, " whole")


@virtual_time
async def test_cancelling_leaves_nothing_running() -> None:
    judge = Judge(delay_s=2.0)
    turn = turn_of(judge)
    for delta in ("One. Two. ", "Three. Four"):
        turn.push(delta)
        await settle()
    finishing = asyncio.create_task(turn.finish())
    await asyncio.sleep(0.1)
    in_flight = judge.in_flight
    assert in_flight >= 3
    finishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await finishing
    await settle()
    assert (judge.in_flight, judge.cancelled) == (0, in_flight)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@virtual_time
async def test_a_turn_that_is_given_up_leaves_nothing_running() -> None:
    judge = Judge(delay_s=2.0)
    turn = turn_of(judge)
    turn.push("One. Two. Three")
    await settle()
    turn.cancel()
    turn.cancel()
    await settle()
    assert judge.in_flight == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}
    with pytest.raises(RuntimeError, match="make a new StreamedTurn"):
        turn.push("more")


@virtual_time
async def test_giving_up_does_not_cut_a_finish_off() -> None:
    judge = Judge(delay_s=0.5)
    turn = turn_of(judge)
    turn.push("One. Two")
    finishing = asyncio.create_task(turn.finish())
    await asyncio.sleep(0.1)
    turn.cancel()
    assert (await finishing).state is JudgingState.JUDGED


@virtual_time
async def test_a_finished_turn_is_finished() -> None:
    turn = turn_of(Judge())
    await turn.finish()
    with pytest.raises(RuntimeError, match="finished already"):
        await turn.finish()


@virtual_time
async def test_half_a_character_does_not_reach_the_judge() -> None:
    judge = Judge()
    turn = turn_of(judge)
    turn.push("Fine \ud83d")
    assert turn.text == "Fine "
    turn.push("\ude00")
    await turn.finish()
    assert judge.texts == ["Fine 😀"] == [turn.text]


# What is decided by now


@virtual_time
async def test_what_is_clean_by_now_is_told_with_every_answer() -> None:
    told: list[tuple[float | None, int, int]] = []
    judge = Judge(delay_s=lambda text: 1.0 if text == "One." else 0.1)

    def answered(verdict: Verdict, chars: int) -> None:
        told.append((verdict.score, chars, turn.clean_chars))

    turn = turn_of(judge, on_answer=answered)
    turn.push("One. Two. ")
    await asyncio.sleep(5.0)
    await turn.finish()
    assert [chars for _, chars, _ in told][-1] == turn.clean_chars == len("One. Two. ")
    assert [clean for _, _, clean in told] == sorted(clean for _, _, clean in told)


@virtual_time
async def test_all_that_has_arrived_can_be_waited_for_the_open_clause_included() -> None:
    judge = Judge()
    turn = turn_of(judge)
    turn.push("One thing. Another without an end")
    assert turn.clean_chars == 0
    assert await turn.decided() is True
    assert turn.clean_chars == len("One thing. Another without an end")
    asked = turn.calls
    assert await turn.decided() is True
    assert turn.calls == asked  # nothing new to ask about
    turn.push(" and more of it")
    assert await turn.decided() is True
    assert turn.calls == asked + 1
    await turn.finish()


@pytest.mark.parametrize(("state", "expected"), [(JudgingState.SKIPPED, True), (JudgingState.TIMED_OUT, None)])
@virtual_time
async def test_what_could_not_be_judged_is_not_decided(state: JudgingState, expected: bool | None) -> None:
    async def judge(payload: TurnPayload) -> Verdict:
        return Verdict("t", state, None, None, "", "", 0.7, 0)

    turn = turn_of(judge)
    turn.push("Something was said")
    assert await turn.decided() is expected
    turn.cancel()


@virtual_time
async def test_a_violation_decides_whatever_comes_after_it() -> None:
    async def judge(payload: TurnPayload) -> Verdict:
        return verdict(payload, 0.9)

    turn = turn_of(judge)
    turn.push("Wrong words")
    assert await turn.decided() is False
    turn.push(" and more of them")
    assert await turn.decided() is False
    assert turn.calls == 1
    turn.cancel()
