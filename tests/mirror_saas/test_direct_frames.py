"""Whole frames out of any cut of a client's bytes, and the frames that we write."""

from __future__ import annotations

import random

import pytest
from websockets.frames import Frame, Opcode

from mirror_saas.direct_frames import FrameSplitter, frame_header, whole_text_frame

LIMIT = 16 * 1024 * 1024


def masked(opcode: Opcode, payload: bytes, fin: bool = True) -> bytes:
    return Frame(opcode, payload, fin).serialize(mask=True)


TEXTS = ["", "a", "é" * 60, "x" * 125, "y" * 126, "ü" * 5_000, "z" * 65_535, "w" * 65_536, "v" * 200_000]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_frame_is_read_when_it_is_whole_and_short(text: str) -> None:
    frame = masked(Opcode.TEXT, text.encode())
    assert whole_text_frame(frame) == (text if len(text.encode()) < 65_536 else None)
    for wrong in (frame[:-1], frame + b"x", frame[:1], b""):
        assert whole_text_frame(wrong) is None


@pytest.mark.parametrize(
    "frame",
    [
        masked(Opcode.BINARY, b"abc"),
        masked(Opcode.TEXT, b"abc", fin=False),
        masked(Opcode.CONT, b"abc"),
        masked(Opcode.PING, b"abc"),
        masked(Opcode.TEXT, b"\xff\xfe"),
        bytes([0xC1]) + masked(Opcode.TEXT, b"abc")[1:],  # compressed, which nobody agreed on
        Frame(Opcode.TEXT, b"abc").serialize(mask=False),
        b"\x81\xfe\x00\x03mask" + b"abc",  # a length that would have fitted into the first byte
    ],
    # Masks are random, and every worker has to give a case the same name.
    ids=["binary", "unfinished", "continued", "ping", "not utf-8", "compressed", "unmasked", "long length"],
)
def test_anything_else_is_the_parsers(frame: bytes) -> None:
    assert whole_text_frame(frame) is None


def test_any_cut_of_the_stream_gives_the_same_whole_frames() -> None:
    rng = random.Random(4)
    frames = [
        masked(rng.choice([Opcode.TEXT, Opcode.BINARY, Opcode.PING, Opcode.CLOSE]), bytes(rng.randrange(0, 120)))
        for _ in range(60)
    ]
    frames += [masked(Opcode.TEXT, bytes(size), rng.random() < 0.5) for size in (126, 65_535, 65_536, 150_000)]
    rng.shuffle(frames)
    stream = b"".join(frames)
    for largest in (1, 3, 200, 70_000, len(stream)):
        splitter, given, at = FrameSplitter(LIMIT), [], 0
        while at < len(stream):
            step = rng.randint(1, largest)
            given += splitter.feed(stream[at : at + step])
            at += step
        assert given == frames
        assert splitter.between


@pytest.mark.parametrize(
    "wrong",
    [
        b"\x83\x80mask",  # an opcode that nobody has
        b"\x91\x80mask",  # a reserved bit
        b"\x81\x03abc",  # not masked
        b"\x82\xff" + (LIMIT + 1).to_bytes(8, "big"),
    ],
)
def test_what_is_no_frame_is_given_to_the_parser_at_once_with_all_behind_it(wrong: bytes) -> None:
    splitter = FrameSplitter(LIMIT)
    good = masked(Opcode.TEXT, b"good")
    assert splitter.feed(good + wrong + b"and more") == [good, wrong + b"and more"]
    assert not splitter.between
    assert splitter.feed(good) == [good]


@pytest.mark.parametrize("length", [0, 125, 126, 65_535, 65_536, 1 << 20])
@pytest.mark.parametrize("opcode", [Opcode.TEXT, Opcode.BINARY])
def test_a_frame_that_we_write_is_rfc_6455s(opcode: Opcode, length: int) -> None:
    payload = bytes(length)
    assert frame_header(opcode, length) + payload == Frame(opcode, payload).serialize(mask=False)
