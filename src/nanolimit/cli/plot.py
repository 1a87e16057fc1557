"""The picture of a replay: allowed and denied over time, and below it who was denied when."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from nanolimit.cli import quota as quotas
from nanolimit.cli import timestamp
from nanolimit.cli.report import clipped, printable, share

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from nanolimit.cli.log import Requests
    from nanolimit.cli.replay import Outcome

_DAY_S = 86_400
# Widths of a column in seconds; the smallest is taken that gives at most _COLUMNS of them.
_WIDTHS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21_600, 43_200, _DAY_S)
_COLUMNS = 200
# Distances of the labels of the time axis in seconds, chosen likewise; then days are doubled.
_TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 10_800, 21_600, 43_200, _DAY_S)
_TICKS = 10
# Users in the lower part.
_ROWS = 6

_INK = "#1f2933"
_QUIET = "#7b8794"
_GRID = "#e4e7eb"
_ALLOWED = "#2a9d8f"
_DENIED = "#d1495b"
_WORST = "#7a1f2f"

_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10.0,
    "text.color": _INK,
    "axes.labelcolor": _QUIET,
    "axes.edgecolor": _GRID,
    "xtick.color": _QUIET,
    "ytick.color": _QUIET,
    # The same log gives the same file.
    "svg.hashsalt": "nanolimit",
}


def draw(path: str, requests: Requests, outcome: Outcome, *, source: str, key: str) -> None:
    """Write the picture to `path` (.png or .svg).

    There must be at least one request. OSError: the file can't be written.
    """
    times_s = np.frombuffer(requests.times_ns, dtype=np.int64) // timestamp.NS
    users = np.frombuffer(requests.users, dtype=np.uint32)
    denied = np.frombuffer(outcome.denied_flags, dtype=np.uint8).astype(bool)
    width_s = _fitting(int(times_s[-1] - times_s[0]) + 1, _WIDTHS_S, _COLUMNS)
    first = int(times_s[0]) // width_s
    column = times_s // width_s - first
    columns = int(column[-1]) + 1
    edges_s = (first + np.arange(columns + 1)) * width_s
    refused = np.bincount(column[denied], minlength=columns)
    passed = np.bincount(column[~denied], minlength=columns)
    ranked = sorted(
        outcome.denied_of_user.items(), key=lambda item: (-item[1], requests.names[item[0]])
    )[:_ROWS]
    # One row a user of the lower part: the user's denied requests in each column.
    counts = [
        np.bincount(column[denied & (users == user)], minlength=columns) for user, _ in ranked
    ]
    labels = [f"{clipped(printable(requests.names[user]), 24)}  {n:,}" for user, n in ranked]

    lower = 0.32 * len(ranked) + 0.35 if ranked else 0.0
    height = 5.0 + lower
    # Room for the names: so much of the width a character.
    left = max(0.08, 0.025 + 0.0062 * max(map(len, labels), default=0))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(11, height), dpi=150, facecolor="white")
        FigureCanvasAgg(figure)
        ratios = [3.6, lower] if ranked else [3.6]
        axes = figure.subplots(
            len(ratios),
            1,
            sharex=True,
            squeeze=False,
            gridspec_kw={
                "height_ratios": ratios,
                "hspace": 0.16,
                "left": left,
                "right": 0.97,
                "top": 1 - 0.95 / height,
                "bottom": 0.45 / height,
            },
        )[:, 0]
        _columns(axes[0], edges_s, passed, refused)
        axes[0].set_ylabel(f"requests per {quotas.span(width_s * timestamp.NS)}")
        if ranked:
            _strips(axes[1], edges_s, np.array(counts), labels)
        ticks, texts = _ticks(int(edges_s[0]), int(edges_s[-1]))
        axes[-1].set_xticks(ticks, texts)
        axes[-1].set_xlim(edges_s[0], edges_s[-1])
        for part in axes:
            part.tick_params(length=0)
            for side in ("top", "right", "left"):
                part.spines[side].set_visible(False)
        _title(figure, height, requests, outcome, source, key)
        with warnings.catch_warnings():
            # The font lacks a script that a user's name is in: boxes are drawn, nothing is wrong.
            warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
            svg = path.lower().endswith(".svg")
            figure.savefig(path, metadata={"Date": None} if svg else None)


def _columns(
    axes: Axes, edges_s: NDArray[Any], passed: NDArray[Any], refused: NDArray[Any]
) -> None:
    """What was denied stands on what was allowed."""
    total = passed + refused
    axes.stairs(passed, edges_s, fill=True, color=_ALLOWED, linewidth=0)
    axes.stairs(total, edges_s, baseline=passed, fill=True, color=_DENIED, linewidth=0)
    axes.set_ylim(0, max(1, int(total.max())) * 1.06)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _strips(axes: Axes, edges_s: NDArray[Any], counts: NDArray[Any], labels: list[str]) -> None:
    """A strip a user: the darker, the more of the user's requests were denied in that column."""
    # A square root keeps single denials visible beside thousands; empty columns stay white.
    shades = np.where(counts > 0, 0.2 + 0.8 * np.sqrt(counts / counts.max()), 0.0)
    colours = LinearSegmentedColormap.from_list("denied", ["#ffffff", _DENIED, _WORST])
    rows = len(labels)
    axes.pcolormesh(
        edges_s, np.arange(rows + 1), shades, cmap=colours, vmin=0, vmax=1, rasterized=True
    )
    axes.hlines(range(1, rows), edges_s[0], edges_s[-1], color=_GRID, linewidth=0.8)
    # parse_math=False: a $ in a name is a $.
    axes.set_yticks(np.arange(rows) + 0.5, labels, fontsize=8.5, parse_math=False)
    axes.set_ylim(rows, 0)
    axes.set_title("The users hit hardest, and when", loc="left", fontsize=8.5, color=_QUIET, pad=4)


def _title(
    figure: Figure, height: float, requests: Requests, outcome: Outcome, source: str, key: str
) -> None:
    """The finding as the headline, what it is about below it, and the colours in words."""
    total, users = len(requests), len(requests.names)
    first, last = (
        f"{timestamp.moment(ns):%Y-%m-%d}" for ns in (requests.times_ns[0], requests.times_ns[-1])
    )
    days = first if first == last else f"{first} to {last}"
    headline = (
        f"{quotas.texts(outcome.quotas)} denies {outcome.denied:,} of {total:,} requests "
        f"({share(outcome.denied, total)})"
    )
    about = (
        f"{clipped(printable(source), 40)}, {days} UTC. Denied at least once: "
        f"{outcome.users_denied:,} of {users:,} users (key: {clipped(printable(key), 40)})"
    )
    upper, lower = 1 - 0.33 / height, 1 - 0.62 / height
    plain: dict[str, Any] = {"va": "center", "parse_math": False}
    figure.text(0.02, upper, headline, fontsize=15, fontweight="bold", **plain)
    figure.text(0.02, lower, about, color=_QUIET, **plain)
    figure.text(0.9, upper, "■ allowed", color=_ALLOWED, ha="right", **plain)
    figure.text(0.97, upper, "■ denied", color=_DENIED, ha="right", **plain)


def _fitting(span_s: int, widths_s: tuple[int, ...], most: int) -> int:
    """The smallest width of which `most` cover the span; beyond the last one, its doubles."""
    for width_s in widths_s:
        if span_s <= width_s * most:
            return width_s
    width_s = widths_s[-1]
    while span_s > width_s * most:
        width_s *= 2
    return width_s


def _ticks(first_s: int, last_s: int) -> tuple[list[int], list[str]]:
    """Places and texts of the time axis, in UTC: the time, and the date where a day begins."""
    step_s = _fitting(last_s - first_s, _TICKS_S, _TICKS)
    places = list(range(-(-first_s // step_s) * step_s, last_s + 1, step_s))
    texts = []
    for place in places:
        if place % _DAY_S == 0:
            form = "%d %b" if last_s - first_s < 300 * _DAY_S else "%d %b %Y"
        else:
            form = "%H:%M:%S" if step_s < 60 else "%H:%M"
        texts.append(timestamp.moment(place * timestamp.NS).strftime(form))
    return places, texts
