"""What does it cost to see what a limiter does, where nobody looks, and where somebody does?

The first question is asked of two builds: this one, with everything that shows something imported
and at work (events, a reporter with a long period, Prometheus, OpenTelemetry, the dashboard), and
the engine before all that, built from an older commit into a directory of its own. Each runs in
processes of its own, and a round runs every row of both. `before, again` is the older build a
second time, in another process: how far its ratio is from 1 is what two processes differ by alone.

The others are asked of this build: a handler attached to "denied" and "allowed"; one that is told
of a hundredth; one that is told of another limiter only; and track_top=100, on one denied user and
on ten thousand in turn, each of which pushes another out of the hundred that are kept.

  python benchmarks/telemetry.py                         against the commit before (446a7cf)
  python benchmarks/telemetry.py --before v0.4.0         against another
  python benchmarks/telemetry.py --before /tmp/checkout  against one that is built already
  python benchmarks/telemetry.py --instructions          callgrind's count as well (needs valgrind)
  python benchmarks/telemetry.py --rounds 5 --launches 1
  python benchmarks/telemetry.py --quick
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from check import FRESH_USERS, WIDE_LIMIT, allowed_row, denied_row, make_key
from harness import (
    HERE,
    Progress,
    Results,
    Row,
    Sample,
    Verdict,
    emit,
    environment,
    make_parser,
    print_environment,
    print_table,
    print_verdicts,
    run_rounds,
    tables_shown,
    time_hot,
    time_hot_empty,
    time_keys,
    time_keys_empty,
    version_of,
)

BEFORE_REF = "446a7cf"  # the last commit whose core keeps nothing for top()
BEFORE, AGAIN, NOW, BARE = "before", "before, again", "now", "now, nothing else imported"
HANDLER, SAMPLED, ELSEWHERE = "a handler", "a handler, sample=0.01", "a handler of another limiter"
TOP = "track_top=100"
MANY_KEYS = 10_000
MANY, MANY_TOP = "denied, 10,000 users", "denied, 10,000 users, track_top=100"
LOOPS = {MANY: "loop of users", MANY_TOP: "loop of users"}
# What an issue asks for, in the order in which it is said to be at work.
PARTS = ("telemetry", "reporter", "prometheus", "otel", "dashboard")
# Kept, so that nothing is collected while it is measured.
at_work: list[object] = []


# --- Workers ------------------------------------------------------------------------------------
def load(source: str) -> Any:
    """The nanolimit of a directory, and of no other."""
    if "nanolimit" in sys.modules:
        raise RuntimeError("nanolimit was imported before it was said which")
    sys.path.insert(0, source)
    nanolimit = importlib.import_module("nanolimit")
    found = Path(nanolimit.__file__ or "").resolve()
    if Path(source).resolve() not in found.parents:
        raise RuntimeError(f"nanolimit came from {found}, not from {source}")
    return nanolimit


def put_to_work(*limiters: Any) -> list[str]:
    """Have these limiters shown in every way that there is; the ways that there are not."""
    missing = []
    for part in PARTS:
        try:
            globals()[f"start_{part}"](*limiters)
        except (ImportError, AttributeError) as error:
            missing.append(f"{part} ({error})")
    return missing


def start_telemetry(*_: Any) -> None:
    """A handler comes and goes: what is left of it must cost nothing."""
    telemetry = importlib.import_module("nanolimit.telemetry")
    telemetry.attach("benchmark", ["allowed", "denied"], do_nothing)
    telemetry.detach("benchmark")


def start_reporter(*_: Any) -> None:
    reporter = importlib.import_module("nanolimit.telemetry").ConsoleReporter
    at_work.append(reporter(period=86_400.0, stream=io.StringIO(), log=False))


def start_prometheus(*limiters: Any) -> None:
    client = importlib.import_module("prometheus_client")
    module = importlib.import_module("nanolimit.metrics.prometheus")
    registry = client.CollectorRegistry()
    module.register(*limiters, registry=registry)
    client.generate_latest(registry)
    at_work.append(registry)


def start_otel(*limiters: Any) -> None:
    metrics = importlib.import_module("opentelemetry.sdk.metrics")
    export = importlib.import_module("opentelemetry.sdk.metrics.export")
    module = importlib.import_module("nanolimit.metrics.otel")
    reader = export.InMemoryMetricReader()
    provider = metrics.MeterProvider([reader])
    module.register(*limiters, meter_provider=provider)
    reader.get_metrics_data()
    at_work.extend((reader, provider))


def start_dashboard(*limiters: Any) -> None:
    at_work.append(importlib.import_module("nanolimit.dashboard").app(*limiters))


def do_nothing(event: str, measurements: dict[str, float], metadata: dict[str, object]) -> None:
    """The handler that is measured: what remains is what it costs to be called."""


def setup(source: str, calls: int, how: str) -> dict[str, Row]:
    """The rows of a worker: one denied user, and users who are allowed."""
    nanolimit = load(source)
    more = {"track_top": 100} if how == TOP else {}
    tight = nanolimit.RateLimiter(5, per=3600, name="tight", **more)
    wide = nanolimit.RateLimiter(WIDE_LIMIT, per=3600, name="wide", **more)
    hot = make_key("str", 0)
    rows: dict[str, Row] = {"loop": lambda _: Sample(time_hot_empty(calls), calls)}
    if how in (BEFORE, NOW):
        control = importlib.import_module("nanolimit._core").Control()
        rows["empty method"] = lambda _: Sample(time_hot(control.empty, hot, calls), calls)
        rows["method + clock"] = lambda _: Sample(time_hot(control.clock, hot, calls), calls)
    if how == NOW:
        put_to_work(tight, wide)
    if how in (HANDLER, SAMPLED, ELSEWHERE):
        attach(nanolimit, how, tight)
    rows["denied"] = denied_row(tight.allow, bool, hot, calls)
    rows["allowed"] = allowed_row(wide.allow, bool, "str", 10**9)
    if how == TOP:
        tight.allow(hot)
        (first,) = tight.top(1)
        if first.key != hot:
            raise RuntimeError(f"{first.key!r} is said to be denied most")
        users = [make_key("str", number) for number in range(MANY_KEYS)]
        for name, limiter in (
            (MANY, nanolimit.RateLimiter(5, per=3600)),
            (MANY_TOP, nanolimit.RateLimiter(5, per=3600, **more)),
        ):
            rows[name] = many_row(limiter, users)
        rows["loop of users"] = lambda _: Sample(time_keys_empty(users), len(users))
    return rows


def attach(nanolimit: Any, how: str, limiter: Any) -> None:
    """Attach the handler, and see that it is called as often as it should be."""
    seen: list[str] = []
    other = nanolimit.RateLimiter(5, per=3600, name="other")
    options: dict[str, Any] = {}
    if how == SAMPLED:
        options["sample"] = 0.01
    if how == ELSEWHERE:
        options["limiter"] = other
    attach_handler = nanolimit.telemetry.attach
    attach_handler("trial", ["allowed", "denied"], lambda *told: seen.append(told[0]), **options)
    for number in range(2_000):
        limiter.allow(f"trial:{number}")
    least, most = {HANDLER: (2_000, 2_000), SAMPLED: (1, 200), ELSEWHERE: (0, 0)}[how]
    if not least <= len(seen) <= most:
        raise RuntimeError(f"{how}: called {len(seen)} times for 2,000 requests")
    nanolimit.telemetry.detach("trial")
    attach_handler("benchmark", ["allowed", "denied"], do_nothing, **options)
    at_work.append(other)


def many_row(limiter: Any, users: list[object]) -> Row:
    """Users who have used everything up, one after the other."""
    for user in users:
        for _ in range(5):
            limiter.allow(user)

    def row(_: int) -> Sample:
        before = limiter.stats().denied
        elapsed = time_keys(limiter.allow, users)
        if limiter.stats().denied - before != len(users):
            raise RuntimeError("a call was allowed in a row of denied calls")
        return Sample(elapsed, len(users), 0)

    return row


# --- The build before ---------------------------------------------------------------------------
class NoBuildError(Exception):
    """There is nothing to compare with; `str` of it says why."""


@contextmanager
def built(ref: str) -> Iterator[tuple[Path, str]]:
    """The sources of a commit, with the extension built, and what they are; gone afterwards."""
    given = Path(ref)
    if (given / "src/nanolimit").is_dir():
        if not list((given / "src/nanolimit").glob("_core.*.so")):
            raise NoBuildError(f"{ref} is not built: python setup.py build_ext --inplace there")
        yield given / "src", ref
        return
    root = HERE.parent
    if shutil.which("git") is None or not (root / ".git").exists():
        raise NoBuildError(
            f"{root} is no git checkout, so that {ref} can't be had: give a directory in which it "
            f"is built, by --before DIRECTORY"
        )
    named = _git(root, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}")
    if named is None:
        raise NoBuildError(
            f"{ref} is no commit here, and no checkout that is built: fetch it (git fetch "
            f"--unshallow), or name another by --before"
        )
    commit = named.decode().strip()
    with tempfile.TemporaryDirectory(prefix="nanolimit-before-") as folder:
        # Not `git worktree`: that would note something in the repository.
        packed = _git(root, "archive", "--format=tar", commit)
        if packed is None:
            raise NoBuildError(f"git archive {commit} failed")
        with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
            archive.extractall(folder, filter="data")
        print(f"building {commit[:12]} ...", file=sys.stderr)
        plain = {name: text for name, text in os.environ.items() if "NANOLIMIT" not in name}
        plain.pop("PYTHONPATH", None)
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=folder, env=plain, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise NoBuildError(f"{ref} can't be built here:\n{done.stderr[-2000:]}")
        yield Path(folder) / "src", f"{ref} ({commit[:12]})"


def _git(root: Path, *arguments: str) -> bytes | None:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True)
    return None if done.returncode else done.stdout


def own_source() -> Path:
    """Where this build lies."""
    found = importlib.util.find_spec("nanolimit")
    if found is None or found.origin is None:
        raise NoBuildError("nanolimit is not installed, nor on PYTHONPATH")
    return Path(found.origin).resolve().parents[1]


# --- Instructions -------------------------------------------------------------------------------
COUNTED = ("denied", "allowed", "inline")


def counted(sources: dict[str, Path], calls: int) -> dict[str, dict[str, float]]:
    """Instructions a call of both builds, everything at work in this one; see instructions.py."""
    import instructions

    rows = ("empty loop", "short loop", *COUNTED)
    found = {}
    for name, source in sources.items():
        # Limiters are made by the program itself: whatever is imported before it, is there first.
        prelude = ""
        if name == NOW:
            prelude = (
                f"import sys; sys.path.insert(1, {str(HERE)!r})\n"
                "import nanolimit, telemetry as bench\n"
                "made = []\n"
                "class Shown(nanolimit.RateLimiter):\n"
                "    def __init__(self, *arguments, **named):\n"
                "        super().__init__(*arguments, **named)\n"
                "        made.append(bench.put_to_work(self))\n"
                "nanolimit.RateLimiter = Shown\n"
            )
        with (
            mock.patch.multiple(instructions, PROGRAM=prelude + instructions.PROGRAM, ROWS=rows),
            mock.patch.dict(os.environ, {"PYTHONPATH": str(source)}),
        ):
            found[name] = instructions.per_call(calls)
    return found


def more_of(counts: dict[str, dict[str, float]], row: str) -> tuple[float, float, float]:
    """Before, now, and how many more."""
    before, now = counts[BEFORE][row], counts[NOW][row]
    return before, now, now - before


# --- Reporting ----------------------------------------------------------------------------------
def over(results: Results, top: tuple[str, str], bottom: tuple[str, str]) -> float:
    """How much longer one row takes than another; NaN where one of them is missing."""
    loops = [(worker, LOOPS.get(row, "loop")) for worker, row in (top, bottom)]
    if not all(results.has(*each) for each in (top, bottom, *loops)):
        return float("nan")
    return results.ratio(top, bottom, loops[0][1], loops[1][1])


def verdicts_of(results: Results) -> list[Verdict]:
    lines = []
    for how in ("denied", "allowed"):
        plain = (NOW, how)
        lines += [
            Verdict(f"now, everything at work, over before, {how}",
                    over(results, plain, (BEFORE, how)), 1.03, 1.0),
            Verdict(f"one handler attached over none, {how}",
                    over(results, (HANDLER, how), plain), 4.0, 3.0),
            Verdict(f"a handler of another limiter over none, {how}",
                    over(results, (ELSEWHERE, how), plain), 1.1, 1.03),
        ]  # fmt: skip
    lines += [
        Verdict("track_top=100 over a plain denial",
                over(results, (TOP, "denied"), (NOW, "denied")), 2.0, 1.5),
        Verdict("track_top=100 over without, allowed",
                over(results, (TOP, "allowed"), (NOW, "allowed")), 1.1, 1.03),
    ]  # fmt: skip
    return lines


def table_of(results: Results) -> list[list[object]]:
    """A line for each row: what it takes, and beside what."""
    lines: list[list[object]] = []
    for worker in (BEFORE, AGAIN, BARE, NOW, HANDLER, SAMPLED, ELSEWHERE, TOP):
        for row in results.row_names(worker):
            if row.startswith("loop"):
                continue
            if row == MANY_TOP:
                beside = (TOP, MANY)
            elif row in ("denied", "allowed"):
                beside = (BEFORE if worker in (AGAIN, BARE, NOW) else NOW, row)
            else:
                beside = (worker, row)
            ratio = (
                None
                if beside == (worker, row) or worker == BEFORE
                else over(results, (worker, row), beside)
            )
            lines.append([
                worker, row, results.net_ns(worker, row, LOOPS.get(row, "loop")), ratio,
                None if ratio is None else ", ".join(beside),
            ])  # fmt: skip
    return lines


def main() -> int:
    parser = make_parser(__doc__ or "")
    parser.add_argument("--rounds", type=int, default=21, help="rounds per launch")
    parser.add_argument("--launches", type=int, default=5, help="fresh processes")
    parser.add_argument(
        "--before", default=BEFORE_REF, metavar="REF",
        help=f"the commit to compare with, or a checkout of it that is built ({BEFORE_REF})",
    )  # fmt: skip
    parser.add_argument("--instructions", action="store_true", help="count them by callgrind too")
    parser.add_argument("--calls", type=int, default=20_000, help="calls a row and round")
    options = parser.parse_args()
    if options.rounds < 1 or options.launches < 1 or options.calls < 100:
        parser.error("--rounds and --launches must be at least 1, --calls at least 100")
    if options.instructions and shutil.which("valgrind") is None:
        parser.error("--instructions needs valgrind (Debian: apt-get install valgrind)")
    rounds, launches, calls = options.rounds, options.launches, options.calls
    if options.quick:
        rounds, launches, calls = 3, 1, 2_000
    try:
        now = own_source()
        with built(options.before) as (before, what):
            return compare(options, {BEFORE: before, NOW: now}, what, rounds, launches, calls)
    except NoBuildError as error:
        print(f"telemetry.py: {error}", file=sys.stderr)
        return 2


def compare(
    options: Any, sources: dict[str, Path], what: str, rounds: int, launches: int, calls: int
) -> int:
    """Run it all, and print what was found."""
    facts = environment()
    facts["before"] = what
    for distribution in ("prometheus-client", "opentelemetry-sdk"):
        facts[distribution] = version_of(distribution) or "not installed"
    missing = missing_parts(sources[NOW])
    facts["at work"] = ", ".join(part for part in PARTS if part not in missing)
    subjects: dict[str, tuple[Any, ...]] = {
        BEFORE: (setup, str(sources[BEFORE]), calls, BEFORE),
        AGAIN: (setup, str(sources[BEFORE]), calls, AGAIN),
    }
    for how in (BARE, NOW, HANDLER, SAMPLED, ELSEWHERE, TOP):
        subjects[how] = (setup, str(sources[NOW]), calls, how)
    results = run_rounds(subjects, rounds=rounds, launches=launches, seed=options.seed,
                         progress=Progress(rounds * launches, "telemetry"))  # fmt: skip
    if BEFORE in results.troubles or NOW in results.troubles:
        for name, trouble in results.troubles.items():
            print(f"{name}: {trouble}", file=sys.stderr)
        return 1
    lines = verdicts_of(results)
    counts: dict[str, dict[str, float]] = {}
    if options.instructions:
        try:
            counts = counted(sources, 3_200 if options.quick else 16_000)
        except RuntimeError as error:
            print(error, file=sys.stderr)
            return 1
        for row in COUNTED:
            more = more_of(counts, row)[-1]
            lines.append(Verdict(f"instructions more than before, {row}", more, 6.0, 0.0))
    with tables_shown(options.json):
        if options.quick:
            print("--quick: these figures show that it runs, nothing else\n")
        print_environment(facts)
        for part, why in missing.items():
            print(f"notice: {part} is not at work, so that it is not measured: {why}")
        table = table_of(results)
        print_table(
            f"One hot user ({FRESH_USERS} fresh users a round where they are allowed)",
            ("build", "what", "ns a call", "ratio", "over"), table,
        )  # fmt: skip
        if counts:
            print_table(
                "Instructions a call, empty loop taken off",
                ("what", BEFORE, NOW, "more"),
                [[row, *more_of(counts, row)] for row in COUNTED],
            )  # fmt: skip
        if results.troubles:
            print_table("Did not run", ("build", "why"), sorted(results.troubles.items()))
        print_verdicts(lines)
    emit(
        options.json,
        facts,
        {
            "table": table, "instructions": counts, "verdicts": lines, "missing": missing,
            "troubles": results.troubles, "quick": options.quick,
        },
    )  # fmt: skip
    return 0


def missing_parts(source: Path) -> dict[str, str]:
    """What of it can't be put to work here, and why: asked in a process of its own."""
    program = (
        f"import sys; sys.path[:0] = [{str(source)!r}, {str(HERE)!r}]\n"
        "import nanolimit, telemetry, json\n"
        "print(json.dumps(telemetry.put_to_work(nanolimit.RateLimiter(5))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    if done.returncode:
        return {"telemetry": done.stderr.strip().splitlines()[-1]}
    import json

    return dict(each.rstrip(")").split(" (", 1) for each in json.loads(done.stdout))


if __name__ == "__main__":
    sys.exit(main())
