"""What every benchmark here shares: worker processes, interleaved rounds, medians of ratios.

How a figure comes about
------------------------
* Every subject (nanolimit, each peer) lives in a worker process of its own. Background threads
  and garbage of one subject can then not slow another one down; only one worker runs at a time.
* A *round* runs every row once, in an order drawn anew for each round. What the machine does to
  one round it does to all rows of it.
* A figure is the median over the rounds of a ratio taken *within* a round, never a ratio of two
  medians. From every row the empty loop of the same worker and the same round is taken off first.
* Garbage collection is off inside the timed blocks, as in `timeit`. That favours the peers that
  make objects; nanolimit makes none in `allow`.

The unit is nanoseconds per call, unless a name says otherwise.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gc
import importlib
import importlib.metadata
import json
import multiprocessing
import os
import platform
import random
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
# The directory of a script comes first on the path: redis.py would hide the library of that name.
sys.path[:] = [*(each for each in sys.path if Path(each).resolve() != HERE), str(HERE)]

PEER_DISTRIBUTIONS = (
    "limits", "throttled-py", "pyrate-limiter", "token-bucket",
    "rust-py-rate-limit", "floodgate-rs", "cpex-rate-limiter",
)  # fmt: skip


# --- Samples ------------------------------------------------------------------------------------
@dataclasses.dataclass
class Sample:
    """One timed block: how long, how many calls, and how many of them were let through."""

    elapsed_ns: int
    calls: int
    admitted: int | None = None

    @property
    def per_call_ns(self) -> float:
        return self.elapsed_ns / self.calls


Row = Callable[[int], Sample]
Setup = Callable[..., dict[str, Callable[[int], Any]]]


# --- The timed loops ----------------------------------------------------------------------------
# A loop and its empty twin must stay the same but for the call: the twin is what is taken off.


def time_hot(call: Callable[[Any], object], key: object, calls: int) -> int:
    """Nanoseconds for `calls` calls of call(key)."""
    turns = repeat(None, calls)
    clock = time.perf_counter_ns
    start = clock()
    for _ in turns:
        call(key)
    return clock() - start


def time_hot_empty(calls: int) -> int:
    """The empty twin of time_hot."""
    turns = repeat(None, calls)
    clock = time.perf_counter_ns
    start = clock()
    for _ in turns:
        pass
    return clock() - start


def time_keys(call: Callable[[Any], object], keys: Sequence[object]) -> int:
    """Nanoseconds for one call(key) for each of the keys, in order."""
    clock = time.perf_counter_ns
    start = clock()
    for key in keys:
        call(key)
    return clock() - start


def time_keys_empty(keys: Sequence[object]) -> int:
    """The empty twin of time_keys. It touches the key objects too (their reference counts)."""
    clock = time.perf_counter_ns
    start = clock()
    for _ in keys:
        pass
    return clock() - start


# --- Workers ------------------------------------------------------------------------------------
def _serve(pipe: Connection, setup: Setup, arguments: tuple[Any, ...]) -> None:
    """The life of a worker: build the rows, then run the one that is asked for."""
    try:
        rows = setup(*arguments)
    except BaseException as error:
        pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
        return
    gc.collect()
    gc.freeze()
    pipe.send(("ready", list(rows), None))
    while True:
        order = pipe.recv()
        if order is None:
            return
        name, turn = order
        gc.disable()
        try:
            sample = rows[name](turn)
        except BaseException as error:
            pipe.send(("failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
            continue
        finally:
            gc.enable()
        pipe.send(("sample", sample, None))


class Worker:
    """One subject in a process of its own."""

    def __init__(self, name: str, setup: Setup, *arguments: Any) -> None:
        self.name = name
        self.rows: list[str] = []
        self.trouble: str | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, setup, arguments), daemon=True, name=name
        )
        self._process.start()
        theirs.close()

    def wait_ready(self, budget_s: float) -> bool:
        """True once the rows are built; False, with `trouble` set, if not within the budget."""
        answer = self._receive(budget_s)
        if answer is None:
            return False
        self.rows = answer
        return True

    def run(self, row: str, turn: int, budget_s: float) -> Any:
        """What one row answers (a Sample, where rounds are run), or None (with `trouble` set)."""
        self._pipe.send((row, turn))
        return self._receive(budget_s)

    def close(self) -> None:
        """End the process. Safe to call twice."""
        try:
            self._pipe.send(None)
        except OSError:
            pass
        self._process.join(timeout=2)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()

    def _receive(self, budget_s: float) -> Any:
        try:
            if not self._pipe.poll(budget_s):
                self.trouble = f"did not finish within {budget_s:.0f} s"
                self._process.kill()
                return None
            kind, answer, trace = self._pipe.recv()
        except (EOFError, OSError):
            self._process.join(timeout=5)
            self.trouble = f"the process ended (exit code {self._process.exitcode})"
            return None
        if kind == "failed":
            self.trouble = str(answer)
            if os.environ.get("BENCH_TRACE"):
                print(trace, file=sys.stderr)
            return None
        return answer


def ask(name: str, setup: Setup, *arguments: Any, budget_s: float) -> tuple[Any, str]:
    """Run setup(*arguments) in a worker; return what its only row answers, and "", or None and why.

    For questions that are asked once: the work is done in the setup, under the budget.
    """
    worker = Worker(name, setup, *arguments)
    try:
        if not worker.wait_ready(budget_s):
            return None, worker.trouble or "unknown trouble"
        return worker.run(worker.rows[0], 0, 60.0), worker.trouble or ""
    finally:
        worker.close()


class Results:
    """Samples of every row: (worker, row) -> {(launch, round): Sample}."""

    def __init__(self) -> None:
        self.samples: dict[tuple[str, str], dict[tuple[int, int], Sample]] = {}
        self.troubles: dict[str, str] = {}

    def add(self, worker: str, row: str, when: tuple[int, int], sample: Sample) -> None:
        self.samples.setdefault((worker, row), {})[when] = sample

    def row_names(self, worker: str) -> list[str]:
        """All rows of a worker, by name."""
        return sorted(row for name, row in self.samples if name == worker)

    def has(self, worker: str, row: str) -> bool:
        return bool(self.samples.get((worker, row)))

    def net_ns(self, worker: str, row: str, empty: str) -> float:
        """Median nanoseconds per call with the empty loop taken off, round by round."""
        mine, loops = self.samples[worker, row], self.samples[worker, empty]
        shared = mine.keys() & loops.keys()
        return statistics.median(mine[at].per_call_ns - loops[at].per_call_ns for at in shared)

    def gross_ns(self, worker: str, row: str) -> float:
        """Median nanoseconds per call, nothing taken off."""
        return statistics.median(s.per_call_ns for s in self.samples[worker, row].values())

    def spread(self, worker: str, row: str) -> float:
        """Interquartile range over median of the gross time: how much the machine wobbled."""
        times = sorted(s.per_call_ns for s in self.samples[worker, row].values())
        if len(times) < 4:
            return float("nan")
        low, middle, high = statistics.quantiles(times, n=4)
        return (high - low) / middle

    def ratio(
        self, top: tuple[str, str], bottom: tuple[str, str], top_empty: str, bottom_empty: str
    ) -> float:
        """Median over the rounds of (top - its empty loop) / (bottom - its empty loop)."""
        series = [self.samples[top], self.samples[bottom]]
        series += [self.samples[top[0], top_empty], self.samples[bottom[0], bottom_empty]]
        shared = series[0].keys() & series[1].keys() & series[2].keys() & series[3].keys()
        quotients = []
        for at in shared:
            upper = series[0][at].per_call_ns - series[2][at].per_call_ns
            lower = series[1][at].per_call_ns - series[3][at].per_call_ns
            if lower > 0:
                quotients.append(upper / lower)
        return statistics.median(quotients) if quotients else float("nan")

    def admitted_share(self, worker: str, row: str) -> float | None:
        """Share of the calls that were let through, over all samples; None if not counted."""
        kept = [s for s in self.samples[worker, row].values() if s.admitted is not None]
        if not kept:
            return None
        return sum(s.admitted or 0 for s in kept) / sum(s.calls for s in kept)


def run_rounds(
    subjects: dict[str, tuple[Any, ...]],
    *,
    rounds: int,
    launches: int = 1,
    seed: int = 1,
    ready_budget_s: float = 120.0,
    sample_budget_s: float = 60.0,
    progress: Progress | None = None,
) -> Results:
    """Run every row of every subject `rounds` times, interleaved, in fresh processes per launch.

    `subjects` maps a name to (setup, *arguments); setup(*arguments) runs in the worker and
    returns its rows. A subject that fails or exceeds its budget drops out and lands in
    `troubles`; the others go on.
    """
    results = Results()
    dice = random.Random(seed)
    for launch in range(launches):
        crew: dict[str, Worker] = {}
        try:
            for name, (setup, *arguments) in subjects.items():
                if name in results.troubles:
                    continue
                if progress:
                    progress.note(f"starting {name}")
                worker = Worker(name, setup, *arguments)
                if worker.wait_ready(ready_budget_s):
                    crew[name] = worker
                else:
                    results.troubles[name] = worker.trouble or "unknown trouble"
                    worker.close()
            for turn in range(rounds):
                plan = [(worker, row) for worker in crew.values() for row in worker.rows]
                dice.shuffle(plan)
                for worker, row in plan:
                    if worker.trouble:
                        continue
                    sample = worker.run(row, turn, sample_budget_s)
                    if sample is None:
                        results.troubles[worker.name] = f"{row}: {worker.trouble}"
                    else:
                        results.add(worker.name, row, (launch, turn), sample)
                if progress:
                    progress.step(f"round {turn + 1}/{rounds}, launch {launch + 1}/{launches}")
        finally:
            for worker in crew.values():
                worker.close()
    if progress:
        progress.done()
    return results


# --- Progress -----------------------------------------------------------------------------------
class Progress:
    """A progress line on stderr: a bar on a terminal, a line every tenth otherwise."""

    def __init__(self, total: int, label: str) -> None:
        self.total, self.label, self.count = max(total, 1), label, 0
        self._live = sys.stderr.isatty()
        self._shown = -1
        self._started = time.monotonic()

    def note(self, text: str) -> None:
        self._show(text, force=self._live)

    def step(self, text: str = "", by: int = 1) -> None:
        self.count += by
        self._show(text)

    def done(self) -> None:
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()

    def _show(self, text: str, force: bool = False) -> None:
        share = min(self.count / self.total, 1.0)
        tenth = int(share * (200 if self._live else 10))
        if tenth == self._shown and not force:
            return
        self._shown = tenth
        took = time.monotonic() - self._started
        if self._live:
            bar = "#" * int(share * 30)
            sys.stderr.write(f"\r\x1b[K{self.label} [{bar:<30}] {share:4.0%} {took:5.0f} s  {text}")
        else:
            sys.stderr.write(f"{self.label} {share:4.0%} {took:5.0f} s  {text}\n")
        sys.stderr.flush()


# --- The machine --------------------------------------------------------------------------------
def cpu_model() -> str:
    """The processor's own name for itself."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in text.splitlines())
        if value
    }
    name = fields.get("model name", platform.machine())
    detail = [f"{part} {fields[part]}" for part in ("cpu family", "model") if part in fields]
    return f"{name} ({', '.join(detail)})" if detail else name


def extension_compiler() -> str:
    """The compiler that built nanolimit._core, as it signed the file; else this Python's."""
    try:
        path = Path(importlib.import_module("nanolimit._core").__file__ or "")
        found = re.findall(rb"(GCC: \([^)\0]*\) [0-9.]+|clang version [0-9.]+)", path.read_bytes())
    except (ImportError, OSError):
        found = []
    if found:
        return str(found[-1].decode("ascii", "replace"))
    return platform.python_compiler()


def is_free_threaded() -> bool:
    """True on a build without a global interpreter lock, while that lock is really off."""
    enabled = getattr(sys, "_is_gil_enabled", None)
    return enabled is not None and not enabled()


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def environment() -> dict[str, str]:
    """What a reader must know about the machine to judge a figure."""
    memory = ""
    try:
        kib = int(re.findall(r"MemTotal:\s+(\d+)", Path("/proc/meminfo").read_text())[0])
        memory = f"{kib / 2**20:.0f} GiB"
    except (OSError, IndexError):
        memory = "unknown"
    build = "free-threaded" if is_free_threaded() else "with GIL"
    facts = {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "cpu": cpu_model(),
        "cores": str(os.cpu_count()),
        "memory": memory,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()} ({build})",
        "python compiler": platform.python_compiler(),
        "nanolimit compiler": extension_compiler(),
        "nanolimit": version_of("nanolimit") or "not installed",
    }
    for name in (*PEER_DISTRIBUTIONS, "numpy"):
        found = version_of(name)
        if found:
            facts[name] = found
    return facts


def print_environment(facts: dict[str, str]) -> None:
    """The environment as an indented list."""
    print("Environment")
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")
    print()


# --- Output -------------------------------------------------------------------------------------
def print_table(title: str, head: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A plain table; numbers to the right."""
    body = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(line[i]) for line in [list(head), *body]) for i in range(len(head))]
    print(title)
    print("  " + "  ".join(f"{name:<{w}}" for name, w in zip(head, widths, strict=True)).rstrip())
    for line in body:
        cells = []
        for cell, width in zip(line, widths, strict=True):
            numeric = bool(re.fullmatch(r"[-+]?[\d.,]+( ?[%xBs]| ns| us| ms)?", cell))
            cells.append(f"{cell:>{width}}" if numeric else f"{cell:<{width}}")
        print("  " + "  ".join(cells).rstrip())
    print()


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return "-" if value != value else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)


@dataclasses.dataclass
class Verdict:
    """One line of DESIGN section 9: what was measured beside what it must be and the goal."""

    what: str
    measured: float
    must: float
    goal: float
    higher_is_better: bool = False

    def met(self, bound: float) -> bool:
        if self.measured != self.measured:
            return False
        return self.measured >= bound if self.higher_is_better else self.measured <= bound

    def row(self) -> list[object]:
        sign = ">=" if self.higher_is_better else "<="
        word = "goal" if self.met(self.goal) else "must" if self.met(self.must) else "SHORT"
        return [self.what, self.measured, f"{sign} {self.must:g}", f"{sign} {self.goal:g}", word]


def print_verdicts(verdicts: Sequence[Verdict]) -> None:
    """The verdicts as a table; the last column says which bound is met."""
    if verdicts:
        head = ("what", "measured", "must", "goal", "met")
        print_table("Against the figures to reach", head, [v.row() for v in verdicts])


# --- Command line -------------------------------------------------------------------------------
def make_parser(doc: str, **kwargs: Any) -> argparse.ArgumentParser:
    """A parser with the options that every script here has."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object only")
    parser.add_argument(
        "--quick", action="store_true", help="small sizes: shows that it runs, not how fast it is"
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of every random choice")
    return parser


def add_peer_option(parser: argparse.ArgumentParser) -> None:
    """--peers a,b,c: which peers to run beside nanolimit."""
    parser.add_argument(
        "--peers", default="all", metavar="NAMES",
        help="comma-separated peers, 'all' or 'none' (default: all that are installed)",
    )  # fmt: skip


def emit(as_json: bool, facts: dict[str, str], payload: dict[str, Any]) -> None:
    """Print the whole outcome as JSON, if asked for."""
    if as_json:
        print(json.dumps({"environment": facts, **payload}, indent=2, default=_plain))


@contextlib.contextmanager
def tables_shown(as_json: bool) -> Iterator[None]:
    """Within it, tables go to stdout; or nowhere, where --json must print one object only."""
    if not as_json:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def rss_bytes() -> int:
    """Resident memory of this process, in bytes (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
