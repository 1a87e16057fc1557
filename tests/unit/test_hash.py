"""The engine's hash is SipHash-1-3-128, bit for bit; and what it is compared with is SipHash."""

from __future__ import annotations

import random

import pytest

from doors import fingerprint
from nanolimit import RateLimiter, _core
from siphash import siphash128

KEY = bytes(range(16))

#: The first vectors of SipHash-2-4-128 in the authors' reference code: no input, 00, 00 01 ...
PUBLISHED = [
    "a3817f04ba25a8e66df67214c7550293",
    "da87c1d86b99af44347659119b22fc45",
    "8177228da4a45dc7fca38bdef60affe4",
    "9c70b60c5267a94e5f33b6b02985ed51",
]


@pytest.mark.parametrize("length", range(len(PUBLISHED)))
def test_the_plain_one_gives_the_published_vectors(length: int) -> None:
    assert siphash128(KEY, bytes(range(length)), c=2, d=4).hex() == PUBLISHED[length]


@pytest.mark.parametrize("length", [*range(130), 255, 256, 257, 1_000, 4_096, 65_537])
def test_the_engine_agrees(length: int) -> None:
    dice = random.Random(length)
    for key, data in (
        (KEY, bytes(nth % 256 for nth in range(length))),
        (dice.randbytes(16), dice.randbytes(length)),
        (b"\xff" * 16, b"\xff" * length),
    ):
        assert _core._siphash128(key, data) == siphash128(key, data, c=1, d=3)


def test_wherever_the_data_begins_in_memory() -> None:
    """Words are read from unaligned addresses too."""
    whole = random.Random(1).randbytes(100)
    for start in range(16):
        for end in range(start, 60):
            part = whole[start:end]
            assert _core._siphash128(KEY, part) == siphash128(KEY, part, c=1, d=3)


def test_fingerprints_spread() -> None:
    """No bit of a fingerprint stands still, and the two halves are not one."""
    limiter = RateLimiter(1)
    prints = [fingerprint(limiter, nth) for nth in range(2_000)]
    assert len(set(prints)) == 2_000
    for bit in range(128):
        ones = sum(value >> bit & 1 for value in prints)
        assert 700 < ones < 1_300, f"bit {bit} is set in {ones} of 2,000 fingerprints"
    assert all(value & (2**64 - 1) != value >> 64 for value in prints)
