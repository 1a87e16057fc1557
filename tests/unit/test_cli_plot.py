"""The picture of a replay: it is drawn, of the right kind, and its columns hold every request."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from array import array
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("matplotlib", reason="the extra nanolimit[plot] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

from nanolimit import Quota
from nanolimit.cli import plot, replay, timestamp
from nanolimit.cli.log import Requests

if TYPE_CHECKING:
    from pathlib import Path

NS = timestamp.NS
DAY = 1_431_820_800


def drawn(
    path: Path, seconds: list[float], users: list[int], names: list[str], limit: int = 1
) -> tuple[Requests, replay.Outcome]:
    times_ns = array("q", [int(second * NS) for second in seconds])
    requests = Requests(times_ns, array("I", users), names)
    outcome = replay.run(times_ns, requests.users, names, Quota(limit))
    plot.draw(str(path), requests, outcome, source="access.log", key="ip")
    return requests, outcome


def test_png(tmp_path: Path) -> None:
    path = tmp_path / "replay.png"
    drawn(path, [DAY, DAY, DAY + 7200], [0, 0, 1], ["a", "b"])
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n")
    width, height = int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    assert width == 1650
    assert height > 700


def test_svg_is_well_formed_and_repeatable(tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.SVG"
    for path in (first, second):
        drawn(path, [DAY, DAY, DAY + 60], [0, 0, 1], ["a", "b"])
    assert ET.parse(first).getroot().tag.endswith("svg")
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("seconds", "users"),
    [
        ([DAY], [0]),
        ([DAY, DAY + 0.25, DAY + 0.5], [0, 1, 1]),
        ([0, 4_000_000_000], [0, 0]),
        ([DAY + i / 10 for i in range(500)], [i % 2 for i in range(500)]),
    ],
)
def test_any_length_of_time(tmp_path: Path, seconds: list[float], users: list[int]) -> None:
    path = tmp_path / "a.svg"
    drawn(path, seconds, users, ["a", "b"])
    assert path.stat().st_size > 0


def test_names_from_logs_are_only_text(tmp_path: Path) -> None:
    """Not mathematics, not control characters, and not wider than the picture."""
    path = tmp_path / "a.svg"
    names = ["$\\nosuch{$", "\x1b[31m\n", "Mozilla/5.0 " * 50, "\udc80", "日本"]
    drawn(path, [DAY] * 10, [0, 1, 2, 3, 4] * 2, names)
    ET.parse(path)


def test_columns_hold_every_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    columns = plot._columns

    def spy(axes: Any, edges_s: Any, passed: Any, refused: Any) -> None:
        seen.append((edges_s, passed, refused))
        columns(axes, edges_s, passed, refused)

    monkeypatch.setattr(plot, "_columns", spy)
    seconds = [DAY + 17 + 61.0 * i * i for i in range(60)]
    requests, outcome = drawn(
        tmp_path / "a.png", [s for s in seconds for _ in (0, 1)], [0, 0] * 60, ["a"]
    )
    ((edges_s, passed, refused),) = seen
    assert passed.sum() == len(requests) - outcome.denied == 60
    assert refused.sum() == outcome.denied == 60
    assert len(passed) == len(refused) == len(edges_s) - 1 <= 200
    assert edges_s[0] <= seconds[0] < edges_s[1]
    assert edges_s[-2] <= seconds[-1] < edges_s[-1]
    width = int(edges_s[1] - edges_s[0])
    assert edges_s[0] % width == 0
    for start, number in zip(edges_s, passed, strict=False):
        assert number == sum(start <= second < start + width for second in seconds)


@pytest.mark.parametrize(
    ("first", "last", "texts"),
    [
        (DAY, DAY + 4, ["17 May", "00:00:01", "00:00:02", "00:00:03", "00:00:04"]),
        (DAY - 3600, DAY + 3600, ["23:00", "23:30", "17 May", "00:30", "01:00"]),
        (
            DAY,
            DAY + 3 * 86_400,
            ["17 May", "12:00", "18 May", "12:00", "19 May", "12:00", "20 May"],
        ),
    ],
)
def test_labels_of_the_time_axis(first: int, last: int, texts: list[str]) -> None:
    places, found = plot._ticks(first, last)
    assert found == texts
    assert first <= places[0] <= places[-1] <= last


def test_labels_of_many_years_bear_the_year() -> None:
    places, found = plot._ticks(0, 4_000_000_000)
    assert 2 <= len(places) <= 11
    assert found[0] == "01 Jan 1970"
