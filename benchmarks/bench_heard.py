"""How well Mirror knows when a word was spoken: `python -m benchmarks.bench_heard`.

Speech of the offline voice, as a telephone call carries it; word ends estimated by `supervision.audio.heard` and, for
comparison, by spreading the text evenly over the audio. Both against two measures that know nothing of either: the
durations that the voice model decided on (exact) and the word times of a recogniser (Whisper tiny.en, itself only good
to some tenths of a second, so its column is the harder to do well in). None of the lines was used for tuning.

Also each with its pauses cut to a third, as hurried voices have them, and cut off while the agent was still sending.
Needs the dependency group `dev`. Takes about half a minute.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from supervision.audio import mulaw
from supervision.audio.heard import PAUSE_MS, estimate_heard, word_times
from supervision.audio.levels import frame_levels
from tests.support.speech import say, true_words
from tests.support.stt import transcribe_words

LINES = [
    "Good morning, this is Carla from Sunrise Travel. I have your booking open, and I can see the problem.",
    "The hotel in Lisbon is fully booked for those nights. However, there is a lovely place two streets away.",
    "If you cancel today, we keep a small fee; if you cancel after Monday, we keep the whole amount.",
    "I have just sent you an email with the details. Could you check whether it has arrived?",
    "No, that is not necessary. Your insurance covers the damage, the towing, and a rental car for five days.",
    "Thank you for waiting. The manager has approved it, so I am going to take the charge off your account right now.",
    "Your blood test results are back, and everything looks normal. The doctor would still like to see you in March.",
    "Sorry about that. Let me start again: the first payment is due in June, the second in July, and the last in May.",
    "We deliver on weekdays between eight and six. Would Wednesday afternoon suit you, or do you prefer the morning?",
    "I understand that this is frustrating, and I would feel the same way. Let me see what I can do for you.",
    "You can pay by card or by bank transfer. Once we have the money, the parcel leaves our warehouse within a day.",
    "That model has been replaced by a newer one, which costs a little more but uses half the power.",
]
RATE = 8000

Pcm = npt.NDArray[np.int16]
Ends = Sequence[float | None]


def ours(line: str, pcm: Pcm) -> list[float]:
    """Word ends by pauses and punctuation."""
    return [word.end_ms for word in word_times(line, pcm, RATE)]


def evenly(line: str, pcm: Pcm) -> list[float]:
    """Word ends by spreading the characters over the audio."""
    return [match.end() / len(line) * len(pcm) * 1000 / RATE for match in re.finditer(r"\S+", line)]


def by_recogniser(line: str, pcm: Pcm) -> Ends:
    """Word ends as Whisper hears them; None where it heard another word."""
    heard = transcribe_words(pcm)
    written = [re.sub(r"\W", "", word).lower() for word in line.split()]
    spoken = [re.sub(r"\W", "", word.word).lower() for word in heard]
    ends: list[float | None] = [None] * len(written)
    for block in difflib.SequenceMatcher(None, written, spoken, autojunk=False).get_matching_blocks():
        for offset in range(block.size):
            ends[block.a + offset] = heard[block.b + offset].end_ms
    return ends


def hurried(pcm: Pcm, ends: Iterable[float], share: float) -> tuple[Pcm, list[float]]:
    """The audio with its pauses cut to `share`, and the word ends moved along."""
    frame = RATE // 100
    levels = frame_levels(pcm, RATE, 10)
    kept: list[Pcm] = []
    moved = np.zeros(len(levels) + 1)
    at = 0
    while at < len(levels):
        until = at
        while until < len(levels) and (levels[until] > -50) == (levels[at] > -50):
            until += 1
        keep = until - at
        if levels[at] <= -50 and keep * 10 >= PAUSE_MS:
            keep = round(keep * share)
        moved[at : until + 1] = moved[at] + np.linspace(0, keep, until - at + 1)
        kept.append(pcm[at * frame : (at + keep) * frame])
        at = until
    return np.concatenate(kept), [float(np.interp(end / 10, np.arange(len(moved)), moved)) * 10 for end in ends]


def errors(cases: Iterable[tuple[str, Pcm, Ends]], method: Callable[[str, Pcm], Ends]) -> npt.NDArray[np.float64]:
    """Distances in ms between word ends of `method` and the measured ones."""
    return np.array(
        [
            abs(estimated - measured)
            for line, pcm, ends in cases
            for estimated, measured in zip(method(line, pcm), ends, strict=True)
            if estimated is not None and measured is not None
        ]
    )


def compare(title: str, cases: list[tuple[str, Pcm, Ends]]) -> None:
    """Print p50 and p95 of both methods, and their ratios."""
    mine, even = (np.percentile(errors(cases, method), (50, 95)) for method in (ours, evenly))
    count = len(errors(cases, ours))
    print(
        f"{title:44} {count:4} words   heard p50 {mine[0]:4.0f} p95 {mine[1]:4.0f} ms   evenly p50 {even[0]:4.0f} "
        f"p95 {even[1]:4.0f} ms   ratio p50 {even[0] / mine[0]:.1f} p95 {even[1] / mine[1]:.1f}"
    )


def decisions(complete: bool) -> None:
    """Print how often a word is called heard or unheard wrongly, over cuts at every 150 ms."""
    wrong = uncertain = words = cuts = 0
    for line in LINES:
        pcm, true = mulaw.decode(say(line)), true_words(line)
        for cut in np.arange(200, len(pcm) / 8, 150):
            heard = estimate_heard(line, pcm if complete else pcm[: int(cut * 8)], RATE, cut, cut, complete=complete)
            said, unsaid = len(heard.heard_text.split()), len(heard.unheard_text.split())
            wrong += sum(word.end_ms > cut + 30 for word in true[:said])
            wrong += sum(word.start_ms < cut - 30 for word in true[len(true) - unsaid :])
            uncertain += len(true) - said - unsaid
            words += len(true)
            cuts += 1
    print(
        f"{'cut, whole turn sent' if complete else 'cut while sending':44} {cuts:4} cuts    wrongly heard or unheard "
        f"{wrong} of {words} words ({wrong / words:.2%}); uncertain words per cut {uncertain / cuts:.1f}"
    )


def main() -> None:
    """Measure and print."""
    spoken = [(line, mulaw.decode(say(line)), [word.end_ms for word in true_words(line)]) for line in LINES]
    short = [(line, *hurried(pcm, ends, 1 / 3)) for line, pcm, ends in spoken]
    recognised: list[tuple[str, Pcm, Ends]] = [(line, pcm, by_recogniser(line, pcm)) for line, pcm, _ in spoken]
    seconds = sum(len(pcm) for _, pcm, _ in spoken) / RATE
    print(f"word ends, {len(LINES)} lines, {seconds:.0f} s of speech at 8 kHz mu-law")
    compare("against the voice model's own durations", list(spoken))
    compare("the same, pauses cut to a third", list(short))
    compare("against Whisper's word times", recognised)
    whisper = errors(list(spoken), by_recogniser)
    p50, p95 = np.percentile(whisper, (50, 95))
    print(f"{'(Whisper against the durations)':44} {len(whisper):4} words   p50 {p50:.0f} p95 {p95:.0f} ms")
    decisions(complete=True)
    decisions(complete=False)
    spent = []
    for line, pcm, _ in spoken * 5:
        began = time.perf_counter()
        estimate_heard(line, pcm, RATE, 3000, 3100)
        spent.append((time.perf_counter() - began) * 1000)
    p50, p95 = np.percentile(spent, (50, 95))
    print(f"estimate_heard, {seconds / len(LINES):.0f} s of audio: p50 {p50:.1f} ms, p95 {p95:.1f} ms")


if __name__ == "__main__":
    main()
