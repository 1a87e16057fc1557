"""``nanolimit top``: what shared tables do just now, live in a terminal or once for a script."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.live import Live

from nanolimit import shared
from nanolimit.cli.keyboard import Keyboard
from nanolimit.cli.pulse import MOST_OFFENDERS, Board, Pulse, Reading, firsts
from nanolimit.cli.screen import Frame, detail, overview
from nanolimit.errors import SharedTableError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

# Width of the picture where there is no terminal to ask.
_PIPE_COLUMNS = 120
_INTERVALS_S = (0.1, 3600.0)
_TERMINATED = 128 + 15
_UNUSABLE = 1


def _seconds(context: click.Context, parameter: click.Parameter, text: str) -> float:
    """Read an interval; a usage error if it is none."""
    low, high = _INTERVALS_S
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    # Not a number is not in any range.
    if not low <= seconds <= high:
        raise click.BadParameter(f"{text!r} is no number of seconds from {low:g} to {high:g}")
    return seconds


@click.command(
    "top",
    epilog="""\b
Examples:
  nanolimit top                                all tables of this user, or the only one
  nanolimit top api -n 20
  nanolimit top /run/api/limits --interval 5
  nanolimit top api --once --json              one object, for scripts
  nanolimit top api --json                     one object a line, each second

\b
Exit codes: 0 done (also by q and Ctrl-C), 1 the table can't be used, 2 wrong usage, 3 an extra is
not installed.""",
)
@click.argument("name", metavar="[SHARED_FILE]", required=False)
@click.option(
    "--interval",
    "interval_s",
    default="1",
    show_default=True,
    callback=_seconds,
    metavar="SECONDS",
    help="From look to look, 0.1 to 3600.",
)
@click.option(
    "--keys",
    "-n",
    "offenders",
    default=10,
    show_default=True,
    type=click.IntRange(1, MOST_OFFENDERS),
    metavar="N",
    help="How many of the keys denied most.",
)
@click.option("--once", is_flag=True, help="Print one picture, of one interval, and end.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object a line, not a picture.")
def top_command(
    name: str | None, interval_s: float, offenders: int, once: bool, as_json: bool
) -> None:
    """Show what a shared table does just now: decisions, denials, fill, who is denied most.

    SHARED_FILE is the table's name, or a path if it has a slash. Without it all tables of this user
    are shown, or the only one. q or Ctrl-C ends it. Looking changes nothing in a table.
    """
    source = _source(name, offenders)
    try:
        if as_json:
            _print_json(source, interval_s, once)
            return
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=_PIPE_COLUMNS)
        if once or not console.is_terminal or console.is_dumb_terminal:
            if not once:
                click.echo("nanolimit: no terminal to draw in, so this is --once", err=True)
            _print_once(console, source, interval_s)
            return
        code = View(console, source, interval_s).run()
    finally:
        source.close()
    if code:
        raise click.exceptions.Exit(code)


class Source:
    """One table or all of this user's; `beat` reads them, `is_one` tells which of both."""

    def __init__(self, of: Pulse | Board) -> None:
        self._of = of

    @property
    def is_one(self) -> bool:
        """Whether it is of one table, and always the same one."""
        return isinstance(self._of, Pulse)

    @property
    def unusable(self) -> tuple[str, ...]:
        """Names of the files that can't be watched."""
        return () if isinstance(self._of, Pulse) else self._of.unusable

    def beat(self) -> list[Reading]:
        """Read each table once."""
        return [self._of.beat()] if isinstance(self._of, Pulse) else self._of.beat()

    def close(self) -> None:
        """Look no more."""
        self._of.close()


def _source(name: str | None, offenders: int) -> Source:
    """What is to be shown. SharedTableError: there is nothing, or it can't be used."""
    if name is not None:
        try:
            table = shared.inspect(name)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint="'SHARED_FILE'") from None
        if table.part_of is not None:
            raise SharedTableError(
                f"table {table.path!r} is a part of the limiter of {table.part_of!r}, which has "
                f"the decisions: nanolimit top {table.part_of}"
            )
        return Source(Pulse(name, offenders))
    found = firsts(shared.tables())
    usable = [table for table in found if not table.problem]
    if not usable:
        others = f", and {len(found)} that can't be used (nanolimit ls says why)" if found else ""
        raise SharedTableError(
            f"there are no tables in {str(shared.directory())!r}{others}: give a path, set "
            f"NANOLIMIT_DIR as the service has it, or run as its user"
        )
    if len(found) == 1:
        return Source(Pulse(found[0].name, offenders))
    return Source(Board(offenders))


def _picture(source: Source, readings: list[Reading], frame: Frame) -> RenderableType:
    if len(readings) == 1:
        return detail(readings[0], frame)
    return overview(readings, frame, unusable=source.unusable)


def _beat_after(source: Source, interval_s: float) -> list[Reading]:
    """A beat to begin with and one after the interval: what lies between them are the rates."""
    source.beat()
    time.sleep(interval_s)
    return source.beat()


def _print_once(console: Console, source: Source, interval_s: float) -> None:
    readings = _beat_after(source, interval_s)
    frame = Frame(console.width, None, not _shows_blocks(console), interval_s)
    console.print(_picture(source, readings, frame))
    _refuse_if_gone(readings)


def _print_json(source: Source, interval_s: float, once: bool) -> None:
    if once:
        readings = _beat_after(source, interval_s)
        click.echo(json.dumps(_as_json(readings), indent=2))
        _refuse_if_gone(readings)
        return
    try:
        source.beat()
        next_s = time.monotonic()
        while True:
            # A fixed beat; one that was missed, because the machine slept, is not made up for.
            next_s = max(next_s + interval_s, time.monotonic())
            time.sleep(max(0.0, next_s - time.monotonic()))
            click.echo(json.dumps(_as_json(source.beat())))
    except KeyboardInterrupt:
        return  # that is how it ends


def _as_json(readings: list[Reading]) -> dict[str, object]:
    """The object that ``--json`` prints (see docs/cli.md)."""
    return {"time": time.time(), "tables": [reading.as_json() for reading in readings]}


def _refuse_if_gone(readings: list[Reading]) -> None:
    """An error if all that there was went away meanwhile."""
    problems = [reading.problem for reading in readings if reading.problem]
    if problems and len(problems) == len(readings):
        raise SharedTableError(problems[0])


def _shows_blocks(console: Console) -> bool:
    return console.encoding.lower().startswith("utf")


class View:
    """The live picture: draws at each beat, and when the terminal's size changes."""

    def __init__(self, console: Console, source: Source, interval_s: float) -> None:
        self._console = console
        self._source = source
        self._interval_s = interval_s
        self._readings: list[Reading] = []
        self._chosen = ""  # a table's name: others may come before it
        self._is_open = source.is_one

    def run(self) -> int:
        """Draw until somebody ends it. Returns the exit code."""
        with Keyboard() as keyboard, self._screen() as live:
            next_s = time.monotonic()
            while True:
                if time.monotonic() >= next_s:
                    self._readings = self._source.beat()
                    next_s = max(next_s + self._interval_s, time.monotonic())
                live.update(self._picture(), refresh=True)
                for each in keyboard.wait(next_s - time.monotonic()):
                    if each == "quit":
                        return 0
                    if each == "terminate":
                        return _TERMINATED
                    if each == "suspend":
                        keyboard.suspend(live.stop, self._again(live))
                    self._react(each)

    def _screen(self) -> Live:
        return Live(
            console=self._console,
            screen=True,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    @staticmethod
    def _again(live: Live) -> Callable[[], None]:
        def enter() -> None:
            live.start(refresh=True)

        return enter

    def _react(self, key: str) -> None:
        if self._source.is_one or not self._readings:
            return
        if key in ("enter", "back"):
            self._is_open = key == "enter"
        elif key in ("up", "down"):
            place = self._place() + (1 if key == "down" else -1)
            place = min(max(place, 0), len(self._readings) - 1)
            self._chosen = self._readings[place].name

    def _place(self) -> int:
        """Where the chosen table stands."""
        names = [reading.name for reading in self._readings]
        return names.index(self._chosen) if self._chosen in names else 0

    def _picture(self) -> RenderableType:
        width, height = self._console.size
        frame = Frame(width, height, not _shows_blocks(self._console), self._interval_s)
        if self._is_open and self._readings:
            footer = "q quits" if self._source.is_one else "Esc: all tables   q quits"
            return detail(self._readings[self._place()], frame, footer)
        return overview(
            self._readings,
            frame,
            "Up, Down, Enter: one table   q quits",
            chosen=self._place(),
            unusable=self._source.unusable,
        )
