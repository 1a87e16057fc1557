"""Quota: the grammar, the ranges, and that it is a value."""

from __future__ import annotations

import copy
import pickle
import random
import re
from datetime import timedelta

import pytest

from nanolimit import Quota

S = 1_000_000_000
TEN_YEARS_S = 315_576_000


@pytest.mark.parametrize(
    ("text", "limit", "window_ns"),
    [
        ("5/minute", 5, 60 * S),
        ("100/15m", 100, 900 * S),
        ("10 per 2 hours", 10, 7_200 * S),
        ("5/60s", 5, 60 * S),
        ("1/s", 1, S),
        ("2047/w", 2047, 604_800 * S),
        ("  7 / 3 DAYS ", 7, 259_200 * S),
        ("7 PER Week", 7, 604_800 * S),
        ("7\tper\n2 Min", 7, 120 * S),
        ("007/1s", 7, S),
        ("5/0.5s", 5, S // 2),
        ("5/1.5 hours", 5, 5_400 * S),
        ("5/0.000001s", 5, 1_000),
        ("5/315576000s", 5, TEN_YEARS_S * S),
        # To the nearest nanosecond, halves to even.
        ("5/1.0000000005s", 5, S),
        ("5/1.0000000015s", 5, S + 2),
        ("5/1.00000000051s", 5, S + 1),
    ],
)
def test_parse_reads_what_people_write(text: str, limit: int, window_ns: int) -> None:
    quota = Quota.parse(text)
    assert (quota.limit, quota.window_ns) == (limit, window_ns)


@pytest.mark.parametrize(
    ("names", "seconds"),
    [
        ("s sec second seconds", 1),
        ("m min minute minutes", 60),
        ("h hour hours", 3_600),
        ("d day days", 86_400),
        ("w week weeks", 604_800),
    ],
)
def test_every_name_of_a_unit_in_any_case(names: str, seconds: int) -> None:
    for name in names.split():
        for written in (name, name.upper(), name.title()):
            assert Quota.parse(f"3/{written}").window_ns == seconds * S
            assert Quota.parse(f"3 per 2 {written}").window_ns == 2 * seconds * S


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not understood"),
        ("   ", "is not understood"),
        ("5", "is not understood"),
        ("/minute", "is not understood"),
        ("5/", "is not understood"),
        ("5 minute", "is not understood"),
        ("5perminute", "is not understood"),
        ("5//minute", "'/minute' is no window"),
        ("5/minute/hour", "is no window"),
        ("5/-1s", "'-1s' is no window"),
        ("5/1e3s", "is no window"),
        ("5/.5s", "is no window"),
        ("5/1.s", "is no window"),
        ("5/ß", "is no window"),
        ("5/60", "'60' has no unit"),
        ("5/fortnight", "'fortnight' is no unit"),
        ("5/ms", "'ms' is no unit"),
        ("5/month", "no fixed length"),
        ("5/2 YEARS", "no fixed length"),
        ("2.5/minute", "'2.5' is no whole number"),
        ("-1/minute", "'-1' is no whole number"),
        ("five/minute", "'five' is no whole number"),
        ("\u0665/minute", "is no whole number"),  # an Arabic five: a digit, but not of the grammar
        ("5_0/minute", "is no whole number"),
        ("10/second; 1000/hour", "holds several quotas: give one, or use parse_all"),
        ("10/second, 1000/hour", "holds several quotas: give one, or use parse_all"),
        ("0/minute", "limit must be from 1 to 16777216, not 0"),
        ("16777217/minute", "limit must be from 1 to 16777216"),
        ("5/0s", "window out of range"),
        ("5/0.0000009s", "window out of range"),
        ("5/315576001s", "window out of range"),
        ("5/" + "9" * 90 + "w", "window out of range"),
        ("9" * 90 + "/s", "an integer of"),
    ],
)
def test_parse_says_what_is_wrong_and_how_to_mend_it(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        Quota.parse(text)
    message = str(caught.value)
    assert repr(text) in message
    if "is not understood" in message:
        assert "'5/minute'" in message


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("5/minute" * 1_000_000, id="eight million"),
        pytest.param("9" * 5_000 + "/s", id="digits"),
        pytest.param(" " * 101, id="spaces"),
        pytest.param("\0" * 1_000_000, id="zeros"),
    ],
)
def test_a_long_text_gives_a_short_message(text: str) -> None:
    with pytest.raises(ValueError, match=f"has {len(text)} characters") as caught:
        Quota.parse(text)
    assert len(str(caught.value)) < 500


def test_a_hundred_characters_are_read() -> None:
    assert Quota.parse("5/1s".ljust(100)) == Quota(5, 1)
    with pytest.raises(ValueError, match="101 characters"):
        Quota.parse("5/1s".ljust(101))


@pytest.mark.parametrize("value", [5, None, b"5/minute", ["5/minute"]])
def test_parse_takes_str_only(value: object) -> None:
    with pytest.raises(TypeError, match=f"must be a str, not {type(value).__name__}"):
        Quota.parse(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("per", "window_ns"),
    [
        (60, 60 * S),
        (60.0, 60 * S),
        (0.1, 100_000_000),
        (1e-6, 1_000),
        (0.0000010004, 1_000),
        (0.0000010006, 1_001),
        (TEN_YEARS_S, TEN_YEARS_S * S),
        (timedelta(minutes=1), 60 * S),
        (timedelta(microseconds=1), 1_000),
        (timedelta(days=3_652.5), TEN_YEARS_S * S),
        (2.0**-19, 1_907),  # 1907.35 ns
        (1 / 3, 333_333_333),
    ],
)
def test_per_becomes_the_nearest_nanosecond(per: float | timedelta, window_ns: int) -> None:
    assert Quota(1, per=per).window_ns == window_ns


def test_things_with_index_are_ints() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    quota = Quota(Three(), per=Three())  # type: ignore[arg-type]
    assert (quota.limit, quota.per) == (3, 3.0)
    assert type(quota.limit) is int


@pytest.mark.parametrize("limit", [True, False, 5.0, 2.5, "5", None, b"5", [5], 5j])
def test_a_limit_that_is_no_int_is_a_type_error(limit: object) -> None:
    with pytest.raises(TypeError, match=f"limit must be an int, not {type(limit).__name__}"):
        Quota(limit)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "limit",
    [
        0,
        -1,
        2**24 + 1,
        pytest.param(10**5000, id="huge"),
        pytest.param(-(10**5000), id="-huge"),
    ],
)
def test_a_limit_out_of_range_is_a_value_error(limit: int) -> None:
    with pytest.raises(ValueError, match=r"limit must be from 1 to 16777216, not ") as caught:
        Quota(limit)
    assert len(str(caught.value)) < 200


def test_the_bounds_themselves_are_fine() -> None:
    assert Quota(1).limit == 1
    assert Quota(2**24).limit == 2**24


@pytest.mark.parametrize("per", [True, False, "60", None, b"60", [60], 60j])
def test_a_window_that_is_no_time_is_a_type_error(per: object) -> None:
    with pytest.raises(TypeError, match=f"per must be seconds .*not {type(per).__name__}"):
        Quota(5, per=per)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "per",
    [
        0,
        0.0,
        -0.0,
        -1,
        9e-7,
        5e-324,
        TEN_YEARS_S + 1,
        1e300,
        pytest.param(10**5000, id="huge"),
        timedelta(0),
        timedelta(-1),
    ],
)
def test_a_window_out_of_range_is_a_value_error(per: float) -> None:
    with pytest.raises(ValueError, match=r"per must be from 1e-6 to 315576000 seconds") as caught:
        Quota(5, per=per)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("per", [float("nan"), float("inf"), float("-inf")])
def test_a_window_that_is_not_finite_is_a_value_error(per: float) -> None:
    with pytest.raises(ValueError, match="per must be a finite number of seconds, not"):
        Quota(5, per=per)


def test_str_reads_back_as_the_same_quota() -> None:
    chance = random.Random(5)
    for _ in range(2_000):
        window_ns = int(10 ** chance.uniform(3, 17.49))
        quota = Quota._of(chance.randint(1, 2**24), window_ns)
        assert Quota.parse(str(quota)) == quota


def test_str_and_repr() -> None:
    assert str(Quota(5, per=60)) == "5 per 60 s"
    assert str(Quota(5, per=0.25)) == "5 per 0.25 s"
    assert str(Quota(5, per=1e-6)) == "5 per 0.000001 s"
    assert str(Quota(5, per=100)) == "5 per 100 s"
    assert repr(Quota(5, per=60)) == "Quota(5, per=60.0)"


def test_a_float_window_comes_back_from_per_and_repr() -> None:
    chance = random.Random(7)
    for _ in range(2_000):
        quota = Quota(5, per=10 ** chance.uniform(-6, 8.49))
        assert Quota(5, per=quota.per) == quota
        assert eval(repr(quota), {"Quota": Quota}) == quota


def test_equality_and_hash_are_by_value() -> None:
    assert Quota(5, per=60) == Quota.parse("5/minute") == Quota(5, timedelta(minutes=1))
    assert hash(Quota(5, per=60)) == hash(Quota.parse("5/m"))
    assert len({Quota(5), Quota(5, 60.0), Quota(6), Quota(5, 61)}) == 3
    assert Quota(5) != "5/minute"
    assert Quota(5) != (5, 60.0)


def test_it_is_immutable() -> None:
    quota = Quota(5, per=60)
    for name in ("limit", "window_ns", "per", "other"):
        with pytest.raises(AttributeError, match=f"immutable.*{name}"):
            setattr(quota, name, 1)
        with pytest.raises(AttributeError, match=f"immutable.*{name}"):
            delattr(quota, name)
    quota.__init__(7, 1)  # type: ignore[misc]
    assert quota == Quota(5, per=60)
    assert not hasattr(quota, "__dict__")


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_and_copy_keep_every_nanosecond(protocol: int) -> None:
    quota = Quota.parse("5/300000000.000000001s")
    assert quota.window_ns == 300_000_000 * S + 1
    assert pickle.loads(pickle.dumps(quota, protocol)) == quota
    assert copy.copy(quota) == copy.deepcopy(quota) == quota


def test_it_can_be_matched() -> None:
    match Quota(5, per=60):
        case Quota(limit, per):
            assert (limit, per) == (5, 60.0)
        case _:
            pytest.fail("no match")


def test_a_subclass_stays_one() -> None:
    class Named(Quota):
        __slots__ = ()

    assert type(Named(5)) is Named
    assert type(Named.parse("5/m")) is Named
    assert repr(Named(5)) == "Named(5, per=60.0)"
    assert type(copy.copy(Named(5))) is Named
