"""Every mu-law code and every 16-bit sample, against the decision values of G.711 itself."""

import sys
import warnings
from bisect import bisect_right

import numpy as np
import pytest

from supervision.audio import mulaw

ALL_SAMPLES = np.arange(-32768, 32768, dtype=np.int16)
ALL_CODES = bytes(range(256))


def decision_values() -> list[int]:
    """Table 2a of G.711: eight segments of sixteen steps (the first of fifteen and a half), each twice as wide."""
    values = [0, 1]
    for segment in range(8):
        for _ in range(16 if segment else 15):
            values.append(values[-1] + 2 ** (segment + 1))
    return values


DECISIONS = decision_values()


def g711_code(sample: int) -> int:
    """The code of a 16-bit sample: the interval that its 14-bit magnitude lies in, inverted, sign first."""
    magnitude = sample >> 2  # 16 bits to the 14 of G.711
    sign = 0x80
    if magnitude < 0:
        magnitude, sign = -magnitude, 0
    interval = min(bisect_right(DECISIONS, magnitude) - 1, 127)
    return sign | (127 - interval)


def g711_sample(code: int) -> int:
    """The middle of the code's interval, in 16 bits."""
    interval = 127 - (code & 0x7F)
    value = 0 if interval == 0 else (DECISIONS[interval] + DECISIONS[interval + 1]) // 2
    return (value if code & 0x80 else -value) << 2


def test_the_table_is_the_standards():
    # Spot values printed in G.711, table 2a, columns 3 and 8.
    assert DECISIONS[:3] == [0, 1, 3]
    assert (DECISIONS[16], DECISIONS[32], DECISIONS[112], DECISIONS[127]) == (31, 95, 4063, 7903)
    assert g711_sample(0x80) == 8031 << 2
    assert g711_sample(0xFF) == 0


def test_all_65536_samples_encode_as_the_standard_says():
    assert mulaw.encode(ALL_SAMPLES) == bytes(g711_code(int(sample)) for sample in ALL_SAMPLES)


def test_all_256_codes_decode_as_the_standard_says():
    assert mulaw.decode(ALL_CODES).tolist() == [g711_sample(code) for code in ALL_CODES]


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="audioop left the standard library in Python 3.13")
def test_both_directions_agree_with_audioop():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import audioop
    assert mulaw.encode(ALL_SAMPLES) == audioop.lin2ulaw(ALL_SAMPLES.tobytes(), 2)
    assert mulaw.decode(ALL_CODES).tobytes() == audioop.ulaw2lin(ALL_CODES, 2)


def test_what_was_encoded_once_survives_any_number_of_conversions():
    again = mulaw.encode(mulaw.decode(ALL_CODES))
    # Only the negative zero has a twin.
    assert again == ALL_CODES.replace(b"\x7f", b"\xff")


def test_silence_is_the_code_of_zero():
    assert mulaw.encode(np.zeros(3, dtype=np.int16)) == bytes([mulaw.SILENCE]) * 3


def test_nothing_encodes_and_decodes_to_nothing():
    assert mulaw.encode(np.zeros(0, dtype=np.int16)) == b""
    assert len(mulaw.decode(b"")) == 0


def test_a_strided_signal_encodes_like_its_copy():
    assert mulaw.encode(ALL_SAMPLES[::3]) == mulaw.encode(ALL_SAMPLES[::3].copy())
