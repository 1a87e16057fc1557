"""The commands, their options and their exit codes; what they do stands in modules of that name."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

import click
from rich.console import Console

from nanolimit import NanolimitError, __version__, shared
from nanolimit.algorithm import ALGORITHMS, DEFAULT
from nanolimit.cli import key as keys
from nanolimit.cli import log, progress, replay
from nanolimit.cli import quota as quotas
from nanolimit.cli import table as tables
from nanolimit.cli.dashboard import dashboard_command
from nanolimit.cli.extra import MissingExtraError, require
from nanolimit.cli.report import SHARES, Report, printable
from nanolimit.cli.top import top_command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from nanolimit import Quota
    from nanolimit.algorithm import Algorithm
    from nanolimit.cli.account import Account
    from nanolimit.cli.rehearsal import Rehearsal

# Width of tables where there is no terminal to ask.
_PIPE_COLUMNS = 120
_IMAGES = (".png", ".svg")


class UnusableInputError(click.ClickException):
    """The input could not be used: exit code 1."""

    exit_code = 1


class ExtraNeededError(click.ClickException):
    """An extra is not installed: exit code 3."""

    exit_code = MissingExtraError.exit_code


def console() -> Console:
    """Where results go: stdout, at a width that does not squeeze tables when it is a pipe."""
    out = Console(highlight=False)
    return out if out.is_terminal else Console(highlight=False, width=_PIPE_COLUMNS)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="""\b
Examples:
  nanolimit tour
  nanolimit replay access.log --limit 60/minute
  nanolimit replay access.log.1.gz access.log --sweep 10,30,60,120/minute --plot replay.png
  ssh web1 cat /var/log/nginx/access.log | nanolimit replay - --limit 5/second --json
  nanolimit size --keys 1e6 --limit 100/minute --typical 5
  nanolimit ls
  nanolimit top api
  nanolimit bench""",
)
@click.version_option(
    __version__, "-V", "--version", prog_name="nanolimit", message="%(prog)s %(version)s"
)
def nanolimit() -> None:
    """Exact rate limiting: try a limit on yesterday's log before you put it into a service.

    And look after the tables that its processes share: ls, top, inspect, rm, size.
    """


@nanolimit.command(
    "replay",
    epilog="""\b
Examples:
  nanolimit replay access.log                                      5/minute, by client address
  nanolimit replay access.log --limit 100/15m --key user           by the authenticated user
  nanolimit replay access.log --key user-agent --top 20
  nanolimit replay access.log --key '"GET /api/v1/([^/ ]+)'        by what the one group matches
  nanolimit replay app.jsonl.gz --key account_id --json            by a field of JSON lines
  nanolimit replay access.log --limit 60/minute --sweep 1,5,10,50/minute --plot replay.svg
  nanolimit replay access.log --limit '10/second; 1000/hour'       several that hold together
  nanolimit replay access.log --limit 100/minute --redis redis://localhost:6379/0

\b
Exit codes: 0 done, 1 the input or the server could not be used, or the server decides otherwise,
2 wrong usage, 3 an extra is not installed.""",
)
@click.argument("logs", metavar="LOG...", nargs=-1, required=True)
@click.option(
    "--limit",
    "limit_text",
    default="5/minute",
    show_default=True,
    metavar="QUOTA",
    help="The limit to try; several quotas with ; between them hold together.",
)
@click.option(
    "--key",
    "key_text",
    default="ip",
    show_default=True,
    metavar="KEY",
    help="What names the user: ip, user, referer, user-agent, x-forwarded-for, a field of JSON "
    "lines (dots go deeper), or a regular expression with one group, searched in the line.",
)
@click.option(
    "--sweep", "sweep_text", metavar="LIST", help="Other limits to try, such as 1,5,10,50/minute."
)
@click.option("--plot", metavar="FILE", help="Draw allowed and denied over time (.png or .svg).")
@click.option(
    "--redis",
    "redis_url",
    metavar="URL",
    help="Have this Redis or Valkey decide too, by the scripts of RedisRateLimiter: are the "
    "decisions the same, how fast is it there, how much memory does it take? The keys have names "
    "of their own (nl:replay-...) and are deleted at the end.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.option(
    "--top",
    default=10,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="How many of the users hit hardest.",
)
def replay_command(
    logs: Sequence[str],
    limit_text: str,
    key_text: str,
    sweep_text: str | None,
    plot: str | None,
    redis_url: str | None,
    as_json: bool,
    top: int,
) -> None:
    """Tell what a limit would have done to the requests of a log.

    LOG is an access log in the common or combined format (Apache, nginx) or JSON lines, plain or
    gzip; - is standard input. Each request is checked by the real limiter at its own time stamp, in
    the order of the time stamps.
    """
    limit = _value("--limit", quotas.parse_all, limit_text)
    key = _value("--key", keys.parse, key_text)
    sweep = (
        _value("--sweep", lambda text: quotas.parse_list(text, limit[0]), sweep_text)
        if sweep_text
        else []
    )
    if plot is not None:
        _check_plot(plot)
    _check_logs(logs)

    if redis_url is None:
        report = analyse(logs, key, limit, sweep, top, plot)
    else:
        with _rehearsal(redis_url) as rehearsal:
            rehearsal.open(limit)
            report = analyse(logs, key, limit, sweep, top, plot, rehearsal)

    requests = report.requests
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=2))
    else:
        report.show(console())
    if plot is not None and report.plot is None:
        click.echo("nanolimit: no requests, so there is nothing to draw", err=True)
    if not len(requests) and requests.bad_lines:
        raise UnusableInputError(
            f"no line of {requests.lines:,} is a request; the first bad one: "
            f"{printable(str(requests.bad[0]))}"
        )
    if not len(requests) and requests.no_key:
        raise UnusableInputError(
            f"none of {requests.no_key:,} requests names a user by the key {key.text!r}. "
            "Keys are ip, user, referer, user-agent, x-forwarded-for, a field of JSON lines, "
            "or a regular expression with one group"
        )
    account = report.account
    if account is not None and account.differences:
        asked = sum(run.requests for run in account.runs)
        raise UnusableInputError(
            f"--redis: the server decides {account.differences:,} of {asked:,} requests otherwise "
            f"than the local engine"
        )


def _rehearsal(url: str) -> Rehearsal:
    from nanolimit.cli.rehearsal import Rehearsal

    try:
        return Rehearsal(url)
    except ImportError as error:
        raise ExtraNeededError(f"--redis: {error}") from None
    except ValueError as error:
        text = str(error).removeprefix("client_or_url ").replace("a client or a URL", "a URL")
        raise click.BadParameter(text, param_hint="'--redis'") from None


def analyse(
    logs: Sequence[str],
    key: keys.Key,
    limit: tuple[Quota, ...],
    sweep: Sequence[Quota],
    top: int,
    plot: str | None,
    rehearsal: Rehearsal | None = None,
) -> Report:
    """Read the logs, replay them, and draw the picture if there is something to draw."""
    with progress.bar("reading", log.size_bytes(logs), "bytes") as advance:
        requests = log.read(logs, key, advance)
    with progress.bar("replaying", len(requests), "requests") as advance:
        outcome = replay.run(requests.times_ns, requests.users, requests.names, limit, advance)
    names = ["stdin" if path == log.STDIN else path for path in logs]
    window_ns = limit[0].window_ns
    same = replay.Sweep(requests, window_ns)
    if len(limit) == 1:
        same.add(outcome)
    sweeps = {window_ns: same}
    with progress.bar("trying other limits", None, "requests"):
        lowest = [same.lowest(parts, whole) for parts, whole, _ in SHARES]
        counts = []
        for other in sweep:
            if other.window_ns not in sweeps:
                sweeps[other.window_ns] = replay.Sweep(requests, other.window_ns)
            counts.append(sweeps[other.window_ns].count(other.limit))
    hits = replay.hardest_hit(requests, outcome, top)
    drawn = None
    if plot is not None and len(requests):
        from nanolimit.cli.plot import draw

        source = ", ".join(Path(name).name for name in names)
        draw(plot, requests, outcome, source=source, key=key.text)
        drawn = plot
    account = None if rehearsal is None else _rehearsed(rehearsal, requests, outcome, sweep)
    return Report(names, key.text, requests, outcome, hits, counts, lowest, drawn, account)


def _rehearsed(
    rehearsal: Rehearsal, requests: log.Requests, outcome: replay.Outcome, sweep: Sequence[Quota]
) -> Account:
    """Have the server decide, for the limit and for each of the sweep."""
    total = (1 + len(sweep)) * len(requests)
    with progress.bar("asking the server", total, "requests") as advance:
        runs = [rehearsal.run(requests, outcome, advance)]
        for quota in sweep:
            # One at a time: what it denies is a byte for each request.
            other = replay.run(requests.times_ns, requests.users, requests.names, quota)
            runs.append(rehearsal.run(requests, other, advance))
    return rehearsal.account(runs)


_T = TypeVar("_T")


def _value(option: str, parse: Callable[[str], _T], text: str) -> _T:
    try:
        return parse(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint=f"'{option}'") from None


def _check_plot(plot: str) -> None:
    path = Path(plot)
    if path.suffix.lower() not in _IMAGES:
        raise click.BadParameter(f"{plot!r} must end in .png or .svg", param_hint="'--plot'")
    if not path.parent.is_dir():
        raise click.BadParameter(
            f"there is no directory {str(path.parent)!r}", param_hint="'--plot'"
        )
    try:
        require("plot")
    except MissingExtraError as missing:
        raise ExtraNeededError(str(missing)) from None


def _check_logs(logs: Sequence[str]) -> None:
    """Fail before a long read, not after it."""
    if list(logs).count(log.STDIN) > 1:
        raise click.UsageError("standard input (-) can be read only once")
    for path in logs:
        # A pipe must not be opened twice: its writer would be told that nobody reads any more.
        if path != log.STDIN and not Path(path).is_fifo():
            Path(path).open("rb").close()


@nanolimit.command("sample")
@click.option(
    "--lines",
    "-n",
    default=200_000,
    show_default=True,
    type=click.IntRange(1, 5_000_000),
    help="How many.",
)
@click.option(
    "--seed", default=1, show_default=True, type=int, help="The same seed gives the same log."
)
@click.option(
    "--start",
    type=click.DateTime(["%Y-%m-%d"]),
    default="2026-03-02",
    show_default=True,
    help="The day it tells of (UTC).",
)
@click.option(
    "--output",
    "-o",
    type=click.File("wb", lazy=False),
    default="-",
    help="A file instead of stdout.",
)
def sample_command(lines: int, seed: int, start: datetime, output: IO[bytes]) -> None:
    """Write a day of a made-up access log to try limits on.

    It tells of people, a scraper and an attack on the login page, in the combined format.
    """
    from nanolimit.cli import sample

    for line in sample.lines(lines, seed, start):
        output.write(line.encode("ascii") + b"\n")


@nanolimit.command("tour")
def tour_command() -> None:
    """Show the limiter at work.

    allow, check, a denial with its retry_after, telemetry. Takes no time: the clock is set by hand.
    """
    from nanolimit.cli import tour

    tour.show(console())


@nanolimit.command("bench")
@click.option(
    "--rounds",
    default=15,
    show_default=True,
    type=click.IntRange(3, 1000),
    help="Interleaved rounds.",
)
@click.option(
    "--calls",
    default=100_000,
    show_default=True,
    type=click.IntRange(1000),
    help="Calls a row and round.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def bench_command(rounds: int, calls: int, as_json: bool) -> None:
    """Measure the limiter on this machine.

    Control rows show what a call costs that does nothing, and one that only reads the clock.
    """
    from nanolimit.cli import bench

    with progress.bar("measuring", rounds, "rounds") as advance:
        result = bench.measure(rounds, calls, advance)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        result.show(console())


_TABLE_EXIT_CODES = """\b
Exit codes: 0 done, 1 the table can't be used, 2 wrong usage, 3 an extra is not installed."""


@nanolimit.command(
    "ls",
    epilog=f"""\b
Examples:
  nanolimit ls
  nanolimit ls --json
  nanolimit ls --all                           a line for each file of a limiter with several quotas
  NANOLIMIT_DIR=/run/api nanolimit ls          the tables of a service that has that directory
  sudo -u www-data nanolimit ls                another user's

{_TABLE_EXIT_CODES}""",
)
@click.option(
    "--all",
    "-a",
    "every",
    is_flag=True,
    help="Also list the further tables of limiters with several quotas, blocks or penalties.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object; it names all tables.")
def ls_command(every: bool, as_json: bool) -> None:
    """List the shared tables of this user.

    They lie in $NANOLIMIT_DIR, else in /dev/shm/nanolimit-<uid>. Files there that are damaged or no
    tables are listed with the reason. Looking changes nothing.

    A limiter with several quotas has a table for each: api, api.2, ... and perhaps api.records, for
    its blocks and penalties. They are one line, unless --all asks for each.
    """
    found, directory = shared.tables(), shared.directory()
    if as_json:
        listed = [tables.as_json(table) for table in found]
        click.echo(json.dumps({"directory": str(directory), "tables": listed}, indent=2))
    else:
        tables.show_list(console(), directory, found, every)


@nanolimit.command(
    "inspect",
    epilog=f"""\b
Examples:
  nanolimit inspect api
  nanolimit inspect /run/api/limits --json

{_TABLE_EXIT_CODES}""",
)
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def inspect_command(name: str, as_json: bool) -> None:
    """Show what a shared table was made for, what it holds and who uses it.

    NAME is the table's name, or a path if it has a slash. The further tables of a limiter with
    several quotas are shown with its first. Looking changes nothing.
    """
    table = _value("NAME", shared.inspect, name)
    if as_json:
        click.echo(json.dumps(tables.as_json(table), indent=2))
    else:
        tables.show(console(), table)
    if table.problems:
        raise click.exceptions.Exit(UnusableInputError.exit_code)


@nanolimit.command(
    "rm",
    epilog=f"""\b
Examples:
  nanolimit rm api
  nanolimit rm ./limits /run/api/limits
  nanolimit rm api --force                     although processes use it

{_TABLE_EXIT_CODES}""",
)
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--force", "-f", is_flag=True, help="Remove it although processes use it.")
def rm_command(names: Sequence[str], force: bool) -> None:
    """Remove shared tables and their counts.

    NAME is a table's name, or a path if it has a slash. The next limiter that asks for the table
    makes it anew. With --force, processes that use it go on with the old one, apart from those that
    come later, until they are restarted. What is no table is never removed.
    """
    failed = False
    for name in names:
        try:
            _value("NAME", lambda name: shared.remove(name, force), name)
        except NanolimitError as error:
            click.echo(f"Error: {error}", err=True)
            failed = True
    if failed:
        raise click.exceptions.Exit(UnusableInputError.exit_code)


@nanolimit.command(
    "size",
    epilog="""\b
Examples:
  nanolimit size --keys 1e6 --limit 100/minute --typical 5
  nanolimit size --keys 100k --limit 100 --per 60 --json

\b
Exit codes: 0 done, 2 wrong usage, 3 an extra is not installed.""",
)
@click.option(
    "--keys",
    "keys_text",
    required=True,
    metavar="N",
    help="Its max_keys: how many keys may be live at a time (1000000, 1e6, 100k).",
)
@click.option(
    "--limit",
    "limit_text",
    default="5/minute",
    show_default=True,
    metavar="QUOTA",
    help="The limit, as 100/minute, or as 100 with --per.",
)
@click.option(
    "--per",
    metavar="SECONDS",
    help="The window in seconds, if --limit is a number alone.  [default: 60]",
)
@click.option(
    "--typical",
    "typical_text",
    metavar="N",
    help="How many requests of its window a live key holds on average.  [default: the limit, at "
    "most 32]",
)
@click.option(
    "--algorithm",
    default=DEFAULT,
    show_default=True,
    type=click.Choice(ALGORITHMS),
    help="How its limiters count.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def size_command(
    keys_text: str,
    limit_text: str,
    per: str | None,
    typical_text: str | None,
    algorithm: Algorithm,
    as_json: bool,
) -> None:
    """Tell how much memory a shared table takes.

    It takes all of it when it is made, and no more later.
    """
    quota = _value("--limit", lambda text: tables.parse_quota(text, per), limit_text)
    number = _value("--keys", tables.parse_count, keys_text)
    typical = (
        None if typical_text is None else _value("--typical", tables.parse_count, typical_text)
    )
    try:
        size = tables.size(number, quota, typical, algorithm)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    if as_json:
        click.echo(json.dumps(size.as_json(), indent=2))
    else:
        size.show(console())


nanolimit.add_command(top_command)
nanolimit.add_command(dashboard_command)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; errors stand on stderr already.

    SystemExit(1), by click, if who reads our output has gone (head, less).
    """
    try:
        code = nanolimit.main(args=arguments, prog_name="nanolimit", standalone_mode=False)
    except click.exceptions.Exit as left:
        return left.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except NanolimitError as error:
        # A shared table that can't be used.
        print(f"Error: {error}", file=sys.stderr)
        return UnusableInputError.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("nanolimit: interrupted", file=sys.stderr)
        return 130
    except OSError as error:
        # A log that can't be read, or a result that can't be written.
        name = "" if error.filename is None else f"{printable(str(error.filename))}: "
        print(f"Error: {name}{error.strerror or error}", file=sys.stderr)
        return UnusableInputError.exit_code
    return code if isinstance(code, int) else 0
