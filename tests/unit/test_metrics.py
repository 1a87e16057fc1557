"""What exporters have in common: which limiters they tell of, and how keys become labels."""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, SharedTableError, shared
from nanolimit.errors import LimiterClosedError
from nanolimit.metrics.label import denials, plain
from nanolimit.metrics.measure import MEASURES, Measure
from nanolimit.metrics.roster import Roster
from sharing import needs_shared
from watched import Offender, Table

BY_NAME = {measure.name: measure for measure in MEASURES}
DECISIONS = BY_NAME["nanolimit.decisions"]
KEYS = BY_NAME["nanolimit.keys"]
TOP = BY_NAME["nanolimit.top_denied"]


def roster_of(*limiters: Any, **options: Any) -> Roster:
    roster = Roster()
    roster.add(limiters, **options)
    return roster


def told(roster: Roster, measure: Measure = KEYS) -> dict[tuple[str, ...], int]:
    """What is read, by labels, of which none may come twice."""
    (points,) = roster.read(measure)
    found = dict(points)
    assert len(found) == len(points)
    return found


def names(roster: Roster) -> list[str]:
    return [label for (label,) in told(roster)]


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "nanolimit" and record.levelno >= logging.WARNING
    ]


# Measures


def test_every_measure_tells_its_own_number() -> None:
    table = Table("t", ("mallory", 9))
    found = {
        (measure.name, *labels): number
        for measure, points in zip(MEASURES, roster_of(table).read(*MEASURES), strict=True)
        for labels, number in points
    }
    assert found == {
        ("nanolimit.decisions", "t", "allowed"): 7,
        ("nanolimit.decisions", "t", "denied"): 3,
        ("nanolimit.would_deny", "t"): 1,
        ("nanolimit.overflows", "t"): 4,
        ("nanolimit.stalled", "t"): 6,
        ("nanolimit.evictions", "t"): 5,
        ("nanolimit.keys", "t"): 2,
        ("nanolimit.capacity.keys", "t"): 1_000,
        ("nanolimit.memory", "t"): 24_576,
        ("nanolimit.log", "t"): 512,
        ("nanolimit.log.capacity", "t"): 8_192,
        ("nanolimit.top_denied", "t", "mallory"): 9,
    }


def test_points_have_the_labels_that_their_measure_says() -> None:
    roster = roster_of(Table("t", ("mallory", 9)))
    for measure, points in zip(MEASURES, roster.read(*MEASURES), strict=True):
        assert points
        assert measure.labels[0] == "limiter"
        assert {len(labels) for labels, _ in points} == {len(measure.labels)}


def test_a_limiter_is_read_once_for_all_measures_and_only_for_what_is_asked() -> None:
    table = Table("t", ("mallory", 9))
    roster = roster_of(table)
    roster.read(*MEASURES)
    assert (table.reads, table.asked) == (1, [10])
    roster.read(TOP)
    assert (table.reads, table.asked) == (1, [10, 10])
    roster.read(DECISIONS)
    assert (table.reads, table.asked) == (2, [10, 10])


def test_the_numbers_of_a_limiter_are_those_of_its_stats() -> None:
    with RateLimiter(3, per=60, name="api") as limiter:
        roster = roster_of(limiter)
        for _ in range(5):
            limiter.allow("mallory")
        assert told(roster, DECISIONS) == {("api", "allowed"): 3, ("api", "denied"): 2}
        assert told(roster, KEYS) == {("api",): 1}


# Who is in it


def test_registered_again_a_limiter_is_told_of_once_and_the_last_word_holds() -> None:
    table = Table("t", ("mallory", 9), ("eve", 8))
    roster = roster_of(table, table, top=2)
    assert len(told(roster, TOP)) == 2
    roster.add([table], top=1)
    assert told(roster, TOP) == {("t", "mallory"): 9}
    assert names(roster) == ["t"]


def test_two_limiters_of_one_name_are_refused_and_nothing_changes() -> None:
    first, second, other = Table("web"), Table("web"), Table("other")
    roster = roster_of(first)
    with pytest.raises(ValueError, match=r"another limiter named 'web' .* RateLimiter\(..., name="):
        roster.add([other, second])
    assert names(roster) == ["web"]
    with pytest.raises(ValueError, match="another limiter named 'web'"):
        Roster().add([first, second])
    assert len(Roster()) == 0


def test_names_that_are_written_alike_are_one_name() -> None:
    roster = roster_of(Table("a\ud800"))
    assert names(roster) == ["a\\ud800"]
    with pytest.raises(ValueError, match="another limiter named"):
        roster.add([Table("a\\ud800")])


def test_a_name_is_free_again_when_its_limiter_is_closed_or_forgotten() -> None:
    roster = Roster()
    for number in range(3):
        limiter = RateLimiter(5, per=60, name="api")
        roster.add([limiter])
        for _ in range(number):
            limiter.allow("me")
        assert told(roster, DECISIONS)["api", "allowed"] == number
        if number == 1:
            limiter.close()
        del limiter
        gc.collect()
    assert told(roster) == {}
    assert len(roster) == 0


def test_a_name_is_free_again_though_nobody_has_read_since() -> None:
    limiter, again = (RateLimiter(5, per=60, name="api") for _ in range(2))
    roster = roster_of(limiter)
    limiter.close()
    roster.add([again])
    assert names(roster) == ["api"]
    assert limiter.closed


def test_a_roster_does_not_keep_a_limiter_but_a_table_that_is_watched() -> None:
    roster = roster_of(RateLimiter(5, per=60, name="forgotten"), Table("watched"))
    gc.collect()  # on a free-threaded build it goes only now
    assert names(roster) == ["watched"]
    assert len(roster) == 1


def test_what_is_closed_disappears_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    limiter, table = RateLimiter(5, per=60, name="api"), Table("watched")
    roster = roster_of(limiter, table)
    limiter.close()

    def gone() -> None:
        table.closed = True
        raise SharedTableError("it is closed")

    table.before = gone
    assert told(roster) == {}
    assert len(roster) == 0
    assert warnings_in(caplog) == []


def test_a_closed_limiter_is_refused() -> None:
    limiter = RateLimiter(5, per=60, name="api")
    limiter.close()
    roster = Roster()
    with pytest.raises(LimiterClosedError, match="limiter 'api' is closed"):
        roster.add([Table("other"), limiter])
    assert len(roster) == 0


def test_dropped_limiters_are_told_of_no_longer() -> None:
    first, second, third = Table("1"), Table("2"), Table("3")
    roster = roster_of(first, second)
    assert roster.drop([first, third, first]) == 1
    assert names(roster) == ["2"]
    assert roster.drop([first]) == 0
    roster.add([first])
    assert names(roster) == ["2", "1"]


@pytest.mark.parametrize("wrong", ["api", 5, None, RateLimiter, object()])
def test_what_is_no_limiter_is_refused(wrong: Any) -> None:
    roster = roster_of(Table("t"))
    kind = type(wrong).__name__
    with pytest.raises(TypeError, match=f"limiter must be a RateLimiter or .*, not {kind}"):
        roster.add([Table("other"), wrong])
    with pytest.raises(TypeError, match="limiter must be"):
        roster.drop([wrong])
    assert names(roster) == ["t"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"top": -1}, ValueError, "top must be from 0 .* to 1000, not -1"),
        ({"top": 1001}, ValueError, "top must be from 0 .* to 1000, not 1001"),
        ({"top": 2.0}, TypeError, "top must be an int, not float"),
        ({"top": True}, TypeError, "top must be an int, not bool"),
        ({"key_text": "sha256"}, TypeError, "key_text must be a callable .*, not str"),
    ],
)
def test_bad_options_are_refused(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    roster = Roster()
    with pytest.raises(error, match=message):
        roster.add([Table("t")], **options)
    assert len(roster) == 0


# What can't be read


def test_one_that_cannot_be_read_is_left_out_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lost = Table("lost")
    roster = roster_of(Table("before"), lost, Table("after"))

    def fail() -> None:
        raise SharedTableError("there is no table 'lost'")

    for _ in range(2):
        lost.before = fail
        for _ in range(3):
            assert names(roster) == ["before", "after"]
            assert told(roster, TOP) == {}  # the keys can be read, and say nothing of the counters
        lost.before = lambda: None
        assert names(roster) == ["before", "lost", "after"]
    assert len(warnings_in(caplog)) == 2
    assert "'lost'" in warnings_in(caplog)[0]
    assert "there is no table" in warnings_in(caplog)[0]


def test_keys_that_cannot_be_read_leave_the_counters(caplog: pytest.LogCaptureFixture) -> None:
    table = Table("t", ("mallory", 9))

    def fail() -> None:
        raise ZeroDivisionError("a clock of one's own")

    table.before_top = fail
    roster = roster_of(table)
    for _ in range(3):
        assert told(roster, TOP) == {}
        assert names(roster) == ["t"]
    assert len(warnings_in(caplog)) == 1
    assert caplog.records[0].exc_info is not None


def test_a_broken_log_breaks_no_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:
            raise OSError("no space left on device")

    logger = logging.getLogger("nanolimit")
    monkeypatch.setattr(logger, "handlers", [Broken()])
    lost = Table("lost")
    lost.before = lambda: 1 / 0
    assert names(roster_of(lost, Table("t"))) == ["t"]


def test_what_is_no_error_passes_through() -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    table = Table("t")
    table.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        roster_of(table).read(KEYS)


@pytest.mark.usefixtures("restless")
def test_readings_while_limiters_come_and_go() -> None:
    """A reading holds whole limiters only, of which each one it holds has both of its numbers."""
    roster = roster_of(Table("stays"))
    stop = threading.Event()
    errors: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                decisions, keys = roster.read(DECISIONS, KEYS)
                tellers = [labels[0] for labels, _ in keys]
                assert "stays" in tellers
                assert [labels[0] for labels, _ in decisions] == [
                    name for name in tellers for _ in range(2)
                ]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(300):
            limiter = RateLimiter(5, per=60, name="comes and goes")
            roster.add([limiter])
            if number % 3:
                limiter.close()
            else:
                assert roster.drop([limiter]) == 1
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert errors == []
    assert names(roster) == ["stays"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_goes_on_though_the_lock_was_held_at_the_fork() -> None:
    from nanolimit.metrics.roster import lock
    from sharing import in_child

    limiter = RateLimiter(5, per=60, name="api")
    roster = roster_of(limiter)
    limiter.allow("me")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock():
            held.set()
            done.wait(60)

    def child() -> Any:
        limiter.allow("me")
        roster.add([Table("more")])
        return told(roster)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(60)
        assert in_child(child) == {("api",): 1, ("more",): 2}
    finally:
        done.set()
        thread.join(60)
    assert told(roster) == {("api",): 1}


# Shared tables


@needs_shared
def test_a_table_tells_what_all_its_limiters_did(folder: Path) -> None:
    with (
        RateLimiter(3, per=60, shared="web", max_keys=100, track_top=20) as limiter,
        RateLimiter(3, per=60, shared="web", max_keys=100, track_top=20, name="other") as other,
        shared.watch("web") as watch,
    ):
        for each in (limiter, other):
            for _ in range(4):
                each.allow("mallory")
            each.allow(7)
        for roster in map(roster_of, (limiter, watch)):
            assert told(roster, DECISIONS) == {("web", "allowed"): 5, ("web", "denied"): 5}
            assert told(roster, KEYS) == {("web",): 2}
            assert told(roster, TOP) == {("web", "mallory"): 5}
        with pytest.raises(ValueError, match="another limiter named 'web'"):
            roster_of(limiter, watch)
        assert len(told(roster_of(limiter, other))) == 2


@needs_shared
def test_a_table_that_is_gone_is_missed_until_there_is_another(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"shared": "web", "max_keys": 100, "track_top": 20}
    with RateLimiter(3, per=60, **options) as limiter:
        limiter.allow("me")
        roster = roster_of(shared.watch("web"))
        assert told(roster, DECISIONS)["web", "allowed"] == 1
    shared.remove("web")
    for _ in range(3):
        assert [each for points in roster.read(*MEASURES) for each in points] == []
    (warning,) = warnings_in(caplog)
    assert "limiter 'web'" in warning
    assert "there is no table" in warning
    with RateLimiter(3, per=60, **options):
        assert told(roster, DECISIONS)["web", "allowed"] == 0


@needs_shared
def test_a_watch_that_is_closed_disappears(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with RateLimiter(3, per=60, shared="web", max_keys=100):
        watch = shared.watch("web")
        roster = roster_of(watch)
        assert names(roster) == ["web"]
        watch.close()
        assert names(roster) == []
        assert len(roster) == 0
        with pytest.raises(LimiterClosedError, match="'web' is closed"):
            roster.add([watch])
    assert warnings_in(caplog) == []


# Keys


def test_the_keys_of_a_limiter_are_those_of_its_top() -> None:
    address = ipaddress.ip_address("10.0.0.1")
    long = "x" * 200
    with RateLimiter(1, per=60, name="api", track_top=20) as limiter:
        roster = roster_of(limiter, top=4)
        assert told(roster, TOP) == {}
        for denied, key in enumerate(("few", 1, "1", address, long), start=1):
            for _ in range(denied + 1):
                limiter.allow(key)
        assert told(roster, TOP) == {
            ("api", "x" * 128 + "…"): 5,
            ("api", "10.0.0.1"): 4,
            ("api", "1"): 3,
            ("api", "1 (int)"): 2,
        }
        roster.add([limiter], top=0)
        assert told(roster, TOP) == {}


def test_no_more_keys_than_were_asked_for() -> None:
    table = Table("t", *((f"user:{number}", number) for number in range(100)))
    assert len(told(roster_of(table), TOP)) == 10
    assert told(roster_of(table, top=3), TOP) == {
        ("t", "user:99"): 99,
        ("t", "user:98"): 98,
        ("t", "user:97"): 97,
    }
    assert len(told(roster_of(table, top=1000), TOP)) == 100
    assert table.asked == [10, 3, 100]


def test_no_keys_where_none_are_tracked_or_none_are_wanted() -> None:
    untracked, unwanted = Table("1", ("a", 1), track_top=0), Table("2", ("a", 1))
    assert told(roster_of(untracked), TOP) == {}
    assert told(roster_of(unwanted, top=0), TOP) == {}
    assert untracked.asked == unwanted.asked == []


def texts(*keys: object) -> list[str]:
    """How keys are written, of which the first was denied most."""
    return list(denials([Offender(key, 100 - rank) for rank, key in enumerate(keys)]))


def test_keys_are_written_to_be_read() -> None:
    user = uuid.UUID("12345678-1234-5678-1234-567812345678")
    address = ipaddress.ip_address("2001:db8::1")
    assert texts("user:1", b"\x00a", 42, user, address, ("10.0.0.1", 7), "", "two\nlines") == [
        "user:1",
        "b'\\x00a'",
        "42",
        "12345678-1234-5678-1234-567812345678",
        "2001:db8::1",
        "('10.0.0.1', 7)",
        "",
        "two\nlines",
    ]


def test_bytes_are_written_where_python_refuses_to_take_them_for_text() -> None:
    code = (
        "from nanolimit.metrics.label import denials; from watched import Offender; "
        "print(*denials([Offender(b'a', 1)]))"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-bb", "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'a'\n", "")


def test_keys_of_two_types_that_read_alike_do_not_clash() -> None:
    address = ipaddress.ip_address("10.0.0.1")
    assert texts(1, "1") == ["1 (int)", "1"]
    assert texts("1", 1) == ["1", "1 (int)"]
    assert texts(1, "1", "1 (int)") == ["1 (int) (int)", "1", "1 (int)"]
    assert texts("10.0.0.1", address, b"a", "b'a'", ("a",), "('a',)") == [
        "10.0.0.1",
        "10.0.0.1 (IPv4Address)",
        "b'a' (bytes)",
        "b'a'",
        "('a',) (tuple)",
        "('a',)",
    ]


def test_the_text_of_a_key_does_not_depend_on_its_rank() -> None:
    keys = (1, "1", b"1", "b'1'", ("1",), uuid.UUID(int=1), str(uuid.UUID(int=1)))
    assert sorted(texts(*keys)) == sorted(texts(*reversed(keys)))


def test_keys_that_cannot_be_told_apart_count_together() -> None:
    cut = "x" * 128 + "…"
    assert denials([Offender(cut, 5), Offender("y", 4), Offender(cut, 3)]) == {cut: 8, "y": 4}


def test_half_a_surrogate_pair_does_not_fail_a_scrape() -> None:
    assert plain("\udc80é\U0001f600") == "\\udc80é\U0001f600"
    assert texts("\udc80", "a") == ["\\udc80", "a"]
    for text in texts("\ud800", ("\ud800",), "\\ud800"):
        assert text.encode("utf-8")


def test_a_text_of_ones_own_keeps_keys_out_and_counts_alike_together() -> None:
    def network(key: Any) -> str:
        return f"{ipaddress.ip_network(f'{key}/24', strict=False)}"

    table = Table("t", ("10.0.0.1", 5), ("10.0.1.1", 4), ("10.0.0.2", 3))
    assert told(roster_of(table, key_text=network), TOP) == {
        ("t", "10.0.0.0/24"): 8,
        ("t", "10.0.1.0/24"): 4,
    }
    assert denials([Offender("1", 5), Offender(1, 4)], lambda key: "all") == {"all": 9}


def test_a_text_that_is_none_is_told_and_leaves_the_counters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    roster = roster_of(Table("t", ("a", 1)), key_text=lambda key: 5)
    assert told(roster, TOP) == {}
    assert names(roster) == ["t"]
    (warning,) = warnings_in(caplog)
    assert warning.startswith("the keys of limiter 't' can't be read and are left out")
    assert warning.endswith("key_text must return a str, not int")
