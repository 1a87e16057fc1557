"""nanolimit top: what is read of a table, and what is drawn of it. Without a terminal."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nanolimit import Quota, RateLimiter, Stats, TopKey, shared
from nanolimit.errors import SharedTableError
from sharing import needs_shared, put_field

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

from rich.cells import cell_len
from rich.console import Console

from nanolimit.cli import pulse as pulses
from nanolimit.cli import screen, top
from nanolimit.cli.command import run
from nanolimit.cli.pulse import Board, Offender, Pulse, Rate, Reading
from nanolimit.cli.screen import Frame

Result = tuple[int, str, str]


class Clocks:
    """Two clocks that are set by hand."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def time(self) -> float:
        return 1_700_000_000.0 + self.now_s


def stats(allowed: int = 0, denied: int = 0, **items: int) -> Stats:
    fields = {"keys": 0, "evicted": 0, "overflowed": 0, "memory_bytes": 4096, "capacity": 100}
    more = {name: items.pop(name) for name in ("stalled", "would_deny") if name in items}
    fields.update(items)
    made = Stats(allowed, denied, *fields.values())
    made.would_deny = more.get("would_deny", 0)
    made.stalled = more.get("stalled", 0)
    made.log_bytes = made.log_capacity_bytes = 0
    return made


class FakeWatch:
    """As shared.Watch, of a table that the test sets."""

    quotas = (Quota(100, 60), Quota(1000, 86400))
    algorithm = "sliding-log"

    def __init__(self, path: Path) -> None:
        self.name, self.path = path.name, str(path)
        self.track_top = 100
        self.own_clock = False
        self.now: Stats | Exception = stats()
        self.on_stats: Callable[[], object] = lambda: None
        self.keys: list[TopKey] = []
        self.closed = False

    def stats(self) -> Stats:
        self.on_stats()
        if isinstance(self.now, Exception):
            raise self.now
        return self.now

    def top(self, n: int = 10) -> list[TopKey]:
        assert n == 1000, "the share is of all that are kept"
        return self.keys[:n]

    def close(self) -> None:
        self.closed = True


class Scene:
    """A pulse, and all that it looks at."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(b"a table")
        self.path = path
        self.clocks = Clocks()
        self.opened: list[FakeWatch] = []
        self.looks: list[float] = []
        self.look_takes_s = 0.0
        self.missing = False
        self.fresh = stats()
        self.info = shared.TableInfo(path.name, str(path), 7, number=0)
        self.pulse = Pulse("api", 2, clocks=self.clocks, watch=self._watch, look=self._look)

    @property
    def watch(self) -> FakeWatch:
        return self.opened[-1]

    def _watch(self, name: object) -> Any:
        if self.missing:
            raise SharedTableError(f"there is no table {name!r}")
        self.opened.append(FakeWatch(self.path))
        self.watch.now = self.fresh
        return self.watch

    def _look(self, name: object) -> shared.TableInfo:
        self.looks.append(self.clocks.now_s)
        self.clocks.now_s += self.look_takes_s
        return self.info

    def beat(self, now: Stats | None = None, *, after_s: float = 1.0) -> Reading:
        self.clocks.now_s += after_s
        if now is not None:
            self.watch.now = now
        return self.pulse.beat()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path / "api")


# Rates


def test_the_first_beat_has_no_rate(scene: Scene) -> None:
    reading = scene.beat(stats(10, 5))
    assert (reading.rate, reading.interval_s, reading.problem) == (None, None, None)
    assert reading.stats == stats(10, 5)
    assert reading.denied_share == pytest.approx(1 / 3)


def test_rates_are_of_the_time_that_passed(scene: Scene) -> None:
    scene.beat(stats(10, 5))
    reading = scene.beat(stats(110, 30), after_s=2.5)
    assert reading.rate == Rate(40.0, 10.0)
    assert reading.interval_s == 2.5
    assert reading.rate.decisions_per_s == 50.0
    assert reading.rate.denied_share == 0.2
    assert scene.beat(stats(110, 30)).rate == Rate(0.0, 0.0)
    assert Rate(0.0, 0.0).denied_share is None


def test_history_ends_with_the_newest(scene: Scene) -> None:
    for number in range(pulses.KEPT_BEATS + 5):
        reading = scene.beat(stats(number * (number + 1) // 2))
    assert len(reading.history) == pulses.KEPT_BEATS
    assert reading.history[-1] == Rate(float(number), 0.0)
    assert reading.beats == pulses.KEPT_BEATS + 5


def test_a_table_that_was_made_anew(scene: Scene) -> None:
    scene.beat(stats(10, 5))
    assert scene.beat(stats(20, 5)).note is None
    aside = scene.path.with_name("aside")
    aside.write_bytes(b"a new one")
    aside.rename(scene.path)
    # Its counters are higher than those of the old one, and yet no difference means anything.
    reading = scene.beat(stats(1000, 900))
    assert reading.rate is None
    assert reading.history[-1] is None
    assert reading.note is not None
    assert reading.note.startswith("made anew")
    assert scene.beat(stats(1001, 900)).rate == Rate(1.0, 0.0)


def test_a_table_that_is_made_anew_just_now(scene: Scene) -> None:
    """Which of the two was read can't be told: the next beat after it has a rate again."""
    scene.beat(stats(10, 5))

    def replace_it() -> None:
        aside = scene.path.with_name("aside")
        aside.write_bytes(b"a new one")
        aside.rename(scene.path)

    scene.watch.on_stats = replace_it
    assert scene.beat(stats(1000, 900)).rate is None
    scene.watch.on_stats = lambda: None
    assert scene.beat(stats(1001, 900)).rate is None
    assert scene.beat(stats(1002, 900)).rate == Rate(1.0, 0.0)


def test_counters_that_fall_are_another_tables(scene: Scene) -> None:
    scene.beat(stats(10, 5))
    reading = scene.beat(stats(10, 4))
    assert reading.rate is None
    assert reading.note is not None


def test_a_table_that_is_gone_and_comes_back(scene: Scene) -> None:
    scene.beat(stats(10, 5))
    scene.beat(stats(12, 5))
    scene.watch.now = SharedTableError("there is no table")
    scene.missing = True
    reading = scene.beat()
    assert reading.problem == "there is no table"
    assert reading.note is not None
    assert reading.note.startswith("lost since")
    assert (reading.stats, reading.rate, reading.top) == (stats(12, 5), None, None)
    assert scene.opened[0].closed
    again = scene.beat()
    assert again.problem == "there is no table 'api'"
    assert again.note == reading.note, "it is gone since then, not since now"
    scene.missing = False
    scene.fresh = stats(50, 50)
    reading = scene.beat()
    assert (reading.problem, reading.rate) == (None, None)
    assert len(scene.opened) == 2
    assert scene.beat(stats(53, 50)).rate == Rate(3.0, 0.0)
    assert reading.quotas == FakeWatch.quotas


def test_a_pulse_of_no_table(tmp_path: Path) -> None:
    def refuse(name: object) -> Any:
        raise SharedTableError("there is none")

    with pytest.raises(SharedTableError, match="there is none"):
        Pulse("api", watch=refuse)


def test_walks_take_a_hundredth_of_the_time(scene: Scene) -> None:
    scene.look_takes_s = 0.05
    for _ in range(20):
        scene.beat(stats())
    # Each takes 0.05 s, so that there are 5 s between the end of one and the next.
    assert scene.looks[0] == 1001.0
    gaps = [later - earlier for earlier, later in zip(scene.looks, scene.looks[1:], strict=False)]
    assert gaps
    assert all(5.04 <= gap <= 6.1 for gap in gaps), gaps


def test_live_keys_are_of_the_quota_that_has_most(scene: Scene) -> None:
    def part(live: int | None, number: int | None) -> shared.TableInfo:
        return shared.TableInfo("api.2", "", 7, live_keys=live, number=number)

    scene.info = replace(scene.info, live_keys=3, parts=(part(5, 1), part(9, None)))
    assert scene.beat(stats()).live_keys == 5, "blocks and the like are no keys of a window"
    scene = replace_info(scene, replace(scene.info, live_keys=None, parts=(part(None, 1),)))
    assert scene.beat(stats()).live_keys is None


def replace_info(scene: Scene, info: shared.TableInfo) -> Scene:
    scene.info = info
    scene.clocks.now_s += 1000  # by when it looks again
    return scene


def test_close_is_safe_twice(scene: Scene) -> None:
    scene.pulse.close()
    scene.pulse.close()
    assert scene.watch.closed


# Offenders


def test_offenders_and_their_shares(scene: Scene) -> None:
    scene.watch.keys = [TopKey("a", 60, 0, 0.0), TopKey("b", 30, 5, 0.0), TopKey("c", 10, 0, 0.0)]
    reading = scene.beat(stats())
    assert reading.top is not None
    assert [(each.key, each.denied, each.error, each.share) for each in reading.top] == [
        ("a", 60, 0, 0.6),
        ("b", 30, 5, 0.3),
    ]


def test_a_table_that_keeps_no_offenders(scene: Scene) -> None:
    scene.watch.track_top = 0
    reading = scene.beat(stats())
    assert reading.top is None
    assert "track_top=100" in drawn(reading)


def test_last_denials_by_a_clock_of_its_own(scene: Scene) -> None:
    scene.watch.keys = [TopKey("a", 1, 0, 123.5)]
    scene.watch.own_clock = True
    reading = scene.beat(stats())
    assert reading.top is not None
    assert reading.ago_s(reading.top[0]) is None
    text = drawn(reading)
    assert "its limiters bring one of their own" in text
    assert "at 123.5" in text


def test_last_denials_by_the_systems_clock(scene: Scene) -> None:
    now = scene.clocks.time() + 1.0
    scene.watch.keys = [TopKey("a", 1, 0, now - 45), TopKey("b", 1, 0, now + 3)]
    reading = scene.beat(stats())
    assert reading.top is not None
    assert [reading.ago_s(each) for each in reading.top] == [45.0, 0.0]
    assert "45 s" in drawn(reading)


@pytest.mark.parametrize(
    ("key", "text", "kind"),
    [
        ("user:1", "user:1", "str"),
        (42, "42", "int"),
        (b"a\x00", "b'a\\x00'", "bytes"),
        (("a", 1), "('a', 1)", "tuple"),
    ],
)
def test_keys_as_text(key: object, text: str, kind: str, scene: Scene) -> None:
    scene.watch.keys = [TopKey(key, 1, 0, 0.0, False)]
    reading = scene.beat(stats())
    (told,) = told_top(reading)
    assert (told["key"], told["key_type"], told["exact"]) == (text, kind, False)


def told_top(reading: Reading) -> list[dict[str, Any]]:
    told = reading.as_json()["top"]
    assert isinstance(told, list)
    return told


# JSON

FIELDS = [
    "name", "path", "problem", "note", "quotas", "algorithm", "own_clock", "allowed", "denied",
    "would_deny", "keys", "live_keys", "capacity", "evicted", "overflowed", "stalled",
    "memory_bytes", "log_bytes", "log_capacity_bytes", "interval_s", "allowed_per_s",
    "denied_per_s", "decisions_per_s", "denied_share", "pids", "dead_pids", "track_top", "top",
]  # fmt: skip
TOP_FIELDS = [
    "key", "key_type", "exact", "denied", "error", "last_denied", "last_denied_ago_s", "share",
]  # fmt: skip


def test_the_fields_of_json(scene: Scene) -> None:
    scene.watch.keys = [TopKey("a\x1b[31m", 4, 1, scene.clocks.time())]
    live = shared.Process(7, True)
    scene.info = replace(scene.info, live_keys=2, processes=(live, live, shared.Process(8, False)))
    scene.beat(stats(1, 1))
    reading = scene.beat(stats(7, 3, keys=3, evicted=4, overflowed=5, stalled=6, would_deny=7))
    told = reading.as_json()
    assert list(told) == FIELDS
    assert list(told_top(reading)[0]) == TOP_FIELDS
    assert told["quotas"] == [{"limit": 100, "per": 60.0}, {"limit": 1000, "per": 86400.0}]
    wanted = {
        "allowed": 7, "denied": 3, "would_deny": 7, "keys": 3, "live_keys": 2, "capacity": 100,
        "evicted": 4, "overflowed": 5, "stalled": 6, "memory_bytes": 4096, "interval_s": 1.0,
        "allowed_per_s": 6.0, "denied_per_s": 2.0, "decisions_per_s": 8.0, "denied_share": 0.25,
        "pids": [7], "dead_pids": [8], "track_top": 100, "own_clock": False, "problem": None,
    }  # fmt: skip
    assert {name: told[name] for name in wanted} == wanted
    assert "\x1b" not in json.dumps(told)


def test_the_fields_of_json_of_what_is_gone(scene: Scene) -> None:
    scene.missing = True
    scene.watch.now = SharedTableError("gone")
    told = scene.beat().as_json()
    assert list(told) == FIELDS
    assert (told["problem"], told["allowed"], told["top"]) == ("gone", None, None)


# The picture


def drawn(what: Any, columns: int = 100, lines: int | None = None, **options: Any) -> str:
    """A reading or readings as they are drawn, without colours."""
    frame = Frame(columns, lines, **options)
    out = io.StringIO()
    console = Console(file=out, width=columns, height=lines or 100, color_system=None)
    many = isinstance(what, list)
    console.print(screen.overview(what, frame) if many else screen.detail(what, frame))
    return out.getvalue()


@pytest.fixture
def reading() -> Reading:
    offenders = tuple(
        Offender(f"203.0.113.{number}", 1000 - number, number, 1_700_000_000.0, True, 0.5)
        for number in range(50)
    )
    return Reading(
        "api",
        "/run/api",
        1_700_000_030.0,
        quotas=FakeWatch.quotas,
        algorithm="gcra",
        track_top=100,
        stats=stats(1_234_567, 100, keys=95, overflowed=12),
        interval_s=1.0,
        rate=Rate(30.0, 10.0),
        top=offenders,
        info=shared.TableInfo("api", "/run/api", 7, processes=(shared.Process(7, True),)),
        history=tuple(Rate(float(number), 10.0) for number in range(60)),
        beats=60,
    )


def test_the_picture_tells_all(reading: Reading) -> None:
    text = drawn(reading)
    for part in (
        "api", "/run/api", "100 per minute and 1,000 per day", "gcra", "40.0/s, denied 25.0 %",
        "in all 1,234,667", "95 of 100 (95.0 %), nearly full", "12 overflowed", "1: 7",
        "203.0.113.0 ", "203.0.113.49", "-49", "30 s", "50.0 %",
    ):  # fmt: skip
        assert part in text, part
    assert "full" in drawn(replace(reading, stats=stats(keys=100)))


@pytest.mark.parametrize("ascii_only", [False, True])
@pytest.mark.parametrize("columns", [1, 10, 40, 60, 80, 100, 200])
@pytest.mark.parametrize("lines", [1, 5, 20, 24, 50])
def test_it_fits_into_its_frame(
    reading: Reading, columns: int, lines: int, ascii_only: bool
) -> None:
    key = "\u202e日本語" * 40
    reading = replace(reading, top=(Offender(key, 1, 0, 0.0, False, 1.0), *(reading.top or ())))
    many = [replace(reading, name=f"table-{number}" * 9) for number in range(70)]
    for what in (reading, many):
        text = drawn(what, columns, lines, ascii_only=ascii_only)
        assert max(map(cell_len, text.splitlines())) <= columns
        assert text.isascii() or not ascii_only
        if lines >= 20:
            assert len(text.splitlines()) <= lines


def test_as_many_offenders_as_there_is_room_for(reading: Reading) -> None:
    assert drawn(reading).count("203.0.113.") == 50
    few = drawn(reading, lines=24)
    assert 0 < few.count("203.0.113.") < 24
    assert "203.0.113.0 " in few


@pytest.mark.parametrize(
    "key",
    [
        "\x1b[2J\x1b[31mred",
        "a\rb\nc\td\be\x00",
        "\x9b31m\x85",
        "safe\u202egnp.exe",
        "\u2066isolated\u2069\u200f\u200b\ufeff",
        "\ud800",
        "Z\u0301\u0302\u0303\u0304\u0305",
        "[bold red]markup[/]",
        "[/]",
        ":smile:",
    ],
)
def test_keys_do_not_steer_the_terminal(reading: Reading, key: str) -> None:
    hostile = replace(
        reading, name=key, path=key, note=key, problem=None,
        top=(Offender(key, 1, 0, 0.0, True, 1.0),),
    )  # fmt: skip
    text = drawn(hostile, 200)
    if key.startswith(("[", ":")):
        assert key in text
    for char in text:
        assert char == "\n" or char.isprintable(), repr(char)
    assert "\u0303" not in text
    # None of it makes another line, or another column.
    assert len(text.splitlines()) == len(drawn(replace(hostile, name="a", path="a", note="a",
        top=(Offender("a", 1, 0, 0.0, True, 1.0),)), 200).splitlines())  # fmt: skip
    assert drawn([hostile], 200).replace("\n", "").isprintable()
    assert drawn(replace(hostile, problem=key), 200).replace("\n", "").isprintable()


def test_a_table_that_is_gone_is_drawn(reading: Reading) -> None:
    gone = replace(reading, problem="there is no table", note="lost since 12:00", rate=None)
    text = drawn(gone)
    assert "there is no table" in text
    assert "lost since 12:00" in text
    assert "lost: waiting" in drawn([gone, reading])


def test_before_there_is_a_rate(reading: Reading) -> None:
    assert "counting" in drawn(replace(reading, rate=None, interval_s=None, history=(None,)))
    drawn(Reading("api", "/run/api", 0.0))


def test_the_overview(reading: Reading) -> None:
    text = drawn([reading, replace(reading, name="logins", rate=Rate(1.0, 0.0))], 140)
    lines = text.splitlines()
    assert lines[0].split()[:4] == ["table", "limit", "decisions", "denied"]
    assert lines[1].split()[0] == "api"
    assert "40.0/s" in lines[1]
    assert "203.0.113.0" in lines[1]
    assert "0 %" in lines[2]


def test_sparklines() -> None:
    frame = Frame(80)
    assert frame.sparkline([0.0, 0.001, 4.0, 8.0, None], 8.0) == "▁▂▅█ "
    assert frame.sparkline([0.0, 0.0], 0.0) == "▁▁"
    assert Frame(80, ascii_only=True).sparkline([0.0, 8.0], 8.0) == "_@"


def test_a_column_stays_what_it_is(reading: Reading) -> None:
    history = [Rate(float(number), 0.0) for number in range(200)]
    seen: dict[int, set[float]] = {}
    for beats in range(100, 200):
        kept = replace(reading, history=tuple(history[beats - 100 : beats]), beats=beats)
        each, columns = screen._columns(
            kept, Frame(120, interval_s=3.0), 25, lambda rate: rate.allowed_per_s
        )
        assert each == 15.0, "five beats make one"
        assert len(columns) <= 25
        newest = (beats - 1) // 5
        for back, mean in enumerate(reversed(columns)):
            if 0 < back < len(columns) - 1:  # those that are whole
                assert mean is not None
                seen.setdefault(newest - back, set()).add(mean)
    assert len(seen) > 30
    assert all(means == {5.0 * column + 2} for column, means in seen.items()), seen


def test_the_picture_begins_with_the_first_rate(reading: Reading) -> None:
    history = (None, None, Rate(5.0, 0.0), None, Rate(6.0, 0.0))
    _, means = screen._columns(
        replace(reading, history=history, beats=5), Frame(120), 60, lambda rate: rate.allowed_per_s
    )
    assert means == [5.0, None, 6.0], "and a gap is one"


def test_all_beats_that_are_kept_are_shown(reading: Reading) -> None:
    kept = ((1, 8), (6, 8), (7, 8), (600, 8), (600, 60), (600, 200), (77, 20), (118, 60))
    for beats, columns in kept:
        history = (Rate(5.0, 0.0),) * beats
        # One that was begun before what is kept takes a column more.
        each, means = screen._columns(
            replace(reading, history=history, beats=beats + 7),
            Frame(120),
            columns,
            lambda rate: rate.allowed_per_s,
        )
        assert len(means) <= columns
        assert len(means) * each >= beats
        assert set(means) == {5.0}


@pytest.mark.parametrize(
    ("part", "columns", "text"),
    [(0.0, 4, "░░░░"), (0.001, 4, "█░░░"), (0.5, 4, "██░░"), (0.999, 4, "███░"), (1.0, 4, "████"),
     (1.5, 4, "████")],
)  # fmt: skip
def test_bars(part: float, columns: int, text: str) -> None:
    assert Frame(80).bar(part, columns) == text


@pytest.mark.parametrize(
    ("part", "text"),
    [(None, "-"), (0.0, "0 %"), (1e-12, "< 0.01 %"), (0.123, "12.3 %"), (0.99999, "> 99.9 %"),
     (1 - 1e-12, "> 99.9 %"), (1.0, "100 %")],
)  # fmt: skip
def test_percentages(part: float | None, text: str) -> None:
    assert screen.percent(part) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [(0.0, "0/s"), (0.25, "0.25/s"), (12.34, "12.3/s"), (1234.5, "1,234/s")],
)
def test_rates_in_words(rate: float, text: str) -> None:
    assert screen.per_second(rate) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "now"), (59.0, "59 s"), (600.0, "10 min"), (8000.0, "2 h")]
)
def test_how_long_ago(seconds: float, text: str) -> None:
    assert screen.ago(seconds) == text


# The command


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Callable[..., Result]:
    """Run a command line in this process and give (exit code, stdout, stderr)."""

    def call(*arguments: object) -> Result:
        code = run(["top", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--interval", "0"], "'0' is no number of seconds from 0.1 to 3600"),
        (["--interval", "-1"], "'-1' is no number of seconds from 0.1 to 3600"),
        (["--interval", "nan"], "'nan' is no number of seconds"),
        (["--interval", "inf"], "'inf' is no number of seconds"),
        (["--interval", "soon"], "'soon' is no number of seconds"),
        (["--interval", "0.01"], "'0.01' is no number of seconds"),
        (["-n", "0"], "0 is not in the range"),
        (["-n", "-3"], "-3 is not in the range"),
        (["-n", "1001"], "1001 is not in the range"),
        (["-n", "x"], "'x' is not a valid integer"),
        ([".api"], "shared must be a name"),
        (["api", "logins"], "unexpected extra argument"),
    ],
)
def test_wrong_usage(
    folder: Path, command: Callable[..., Result], arguments: Sequence[str], says: str
) -> None:
    code, out, err = command(*arguments, "--once")
    assert (code, out) == (2, "")
    assert says in " ".join(err.split())


@needs_shared
@pytest.mark.parametrize("how", [["--once"], ["--once", "--json"], ["--json"], []])
def test_what_is_no_table(folder: Path, command: Callable[..., Result], how: list[str]) -> None:
    (folder / "notes").write_text("text " * 2000)
    (folder / "folder").mkdir()
    RateLimiter(3, shared="damaged").close()
    os.truncate(folder / "damaged", 5000)
    for name, says in (
        ("notes", "it is no table of nanolimit"),
        (folder, "it is a directory"),
        ("damaged", "its size is 5000"),
        ("nothing", "there is no table"),
        ("nothing/api", "there is no directory"),
    ):
        code, out, err = command(name, *how)
        assert (code, out) == (1, ""), name
        assert err.startswith("Error: ")
        assert says in err
    assert sorted(each.name for each in folder.iterdir()) == ["damaged", "folder", "notes"]


@needs_shared
def test_no_tables(folder: Path, command: Callable[..., Result]) -> None:
    code, out, err = command("--once")
    assert (code, out) == (1, "")
    assert f"there are no tables in '{folder}'" in err
    (folder / "notes").write_text("text")
    assert "1 that can't be used" in command("--once")[2]


@needs_shared
def test_a_part_of_a_limiter(folder: Path, command: Callable[..., Result]) -> None:
    RateLimiter("5/minute; 7/hour", shared="api").close()
    code, out, err = command("api.2", "--once")
    assert (code, out) == (1, "")
    assert "nanolimit top api" in err


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interval takes no time."""
    monkeypatch.setattr(top.time, "sleep", lambda seconds: None)


@needs_shared
@pytest.mark.usefixtures("quick")
def test_the_only_table_is_taken(folder: Path, command: Callable[..., Result]) -> None:
    limiter = RateLimiter("5/minute; 7/hour", shared="api", max_keys=1000)
    for _ in range(8):
        limiter.allow("me")
    code, out, err = command("--once", "--json")
    assert (code, err) == (0, "")
    (told,) = json.loads(out)["tables"]
    assert (told["name"], told["allowed"], told["denied"]) == ("api", 5, 3)
    assert told["quotas"] == [{"limit": 5, "per": 60.0}, {"limit": 7, "per": 3600.0}]
    assert told["pids"] == [os.getpid()]
    code, out, err = command("--once")
    assert code == 0
    assert "5 per minute and 7 per hour" in out


@needs_shared
@pytest.mark.usefixtures("quick")
def test_several_tables(folder: Path, command: Callable[..., Result]) -> None:
    for name in ("one", "two"):
        RateLimiter("5/minute; 7/hour", shared=name, max_keys=1000).allow("me")
    (folder / "notes").write_text("text")
    code, out, err = command("--once")
    assert (code, err) == (0, "")
    table, one, two, others = (line.split() for line in out.splitlines())
    assert (table[0], one[0], two[0]) == ("table", "one", "two")
    assert " ".join(others) == "not to be watched: notes (nanolimit ls says why)"
    code, out, _ = command("--once", "--json")
    assert [each["name"] for each in json.loads(out)["tables"]] == ["one", "two"]


@needs_shared
@pytest.mark.usefixtures("quick")
def test_without_a_terminal_it_is_once(folder: Path, command: Callable[..., Result]) -> None:
    RateLimiter(5, shared="api", max_keys=1000).allow("me")
    code, out, err = command("api")
    assert code == 0
    assert "no terminal" in err
    assert "in all 1" in out
    assert "\x1b" not in out


@needs_shared
@pytest.mark.usefixtures("quick")
def test_a_table_of_another_boot(folder: Path, command: Callable[..., Result]) -> None:
    RateLimiter(5, shared="api", max_keys=1000).close()
    put_field(folder / "api", "boot_id", bytes(16))
    code, out, err = command("api", "--once")
    assert (code, err) == (0, "")
    assert "of another boot: the next limiter makes it anew" in out


@needs_shared
def test_a_board_takes_up_new_tables(folder: Path) -> None:
    RateLimiter(5, shared="one", max_keys=1000).close()
    clocks = Clocks()
    board = Board(clocks=clocks)
    assert [reading.name for reading in board.beat()] == ["one"]
    RateLimiter(5, shared="two", max_keys=1000).close()
    clocks.now_s += 1000
    assert [reading.name for reading in board.beat()] == ["one", "two"]
    shared.remove("one")
    assert [bool(reading.problem) for reading in board.beat()] == [True, False]
    board.close()
    board.close()


@needs_shared
@pytest.mark.usefixtures("quick")
def test_looking_changes_nothing(folder: Path, command: Callable[..., Result]) -> None:
    limiter = RateLimiter(5, shared="api", max_keys=1000)
    for _ in range(8):
        limiter.allow("me")
    before = (folder / "api").read_bytes()
    assert command("api", "--once", "--json")[0] == 0
    assert (folder / "api").read_bytes() == before
    assert [each.name for each in folder.iterdir()] == ["api"]
