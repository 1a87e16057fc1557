"""A scrape of any worker tells the truth for all workers, also for those that were killed."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest, start_http_server
from prometheus_client.parser import text_string_to_metric_families

import hammer
from nanolimit import RateLimiter, shared
from nanolimit.metrics import prometheus
from nanolimit.metrics.measure import MEASURES
from watched import Table

WORKERS = 4
KILLED = 2
PATIENCE_S = 60.0

# By name, limiter, and the label beside it.
Samples = dict[tuple[str, str, str], float]


def scrape(port: int) -> Samples:
    """Scrape over HTTP."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENCE_S) as answer:
        assert answer.status == 200
        return samples_of(answer.read())


def samples_of(text: bytes) -> Samples:
    """Read an answer. No sample comes twice."""
    found: Samples = {}
    for family in text_string_to_metric_families(text.decode()):
        for each in family.samples:
            beside = each.labels.get("result") or each.labels.get("key") or ""
            one = each.name, each.labels["limiter"], beside
            assert one not in found
            found[one] = each.value
    return found


def decisions(samples: Samples) -> int:
    name = "nanolimit_decisions_total"
    number = samples[name, "web", "allowed"] + samples[name, "web", "denied"]
    assert number == int(number)
    return int(number)


class Worker:
    def __init__(self, counts: Path, index: int, track_top: int) -> None:
        self.index = index
        self.process = subprocess.Popen(
            [sys.executable, hammer.__file__, "web", str(counts), str(index), str(track_top)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self.port = 0

    def read(self) -> int:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"worker {self.index} ended by itself: {self.process.wait()}"
        return int(line)

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        assert self.process.wait(PATIENCE_S) == -signal.SIGKILL, "it ended by itself"
        self.close()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            try:
                pipe.close()
            except BrokenPipeError:
                pass


class Crew:
    """Workers at one table; those that were killed are followed by others."""

    def __init__(self, folder: Path, track_top: int) -> None:
        self.path = folder / "counts"
        self.counts = hammer.Counts(self.path)
        self.track_top = track_top
        self.workers: list[Worker] = []
        self.killed = 0
        self._hired = 0

    def hire(self) -> None:
        fresh = []
        for _ in range(WORKERS - len(self.workers)):
            self._hired += 1
            fresh.append(Worker(self.path, self._hired, self.track_top))
        for worker in fresh:
            worker.port = worker.read()
        self.workers += fresh

    def go(self) -> None:
        self.counts.words[0] = 0
        for worker in self.workers:
            worker.go()

    def stop(self) -> None:
        self.counts.words[0] = 1
        for worker in self.workers:
            assert worker.read() == self.counts.words[worker.index]

    def wait_for(self, worker: Worker, more: int) -> None:
        """Wait until so many more checks have returned to it."""
        goal = self.counts.words[worker.index] + more
        deadline = time.monotonic() + PATIENCE_S
        while self.counts.words[worker.index] < goal:
            assert worker.process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline, f"worker {worker.index} hangs"
            time.sleep(0.001)

    def kill(self, worker: Worker) -> None:
        worker.kill()
        self.workers.remove(worker)
        self.killed += 1

    def check(self, number: int, *, before: int, going_on: int = 0) -> None:
        """Check a number that was read when `before` had returned, with `going_on` at work."""
        assert before <= number <= self.counts.returned() + self.killed + going_on

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


def check_keys(samples: Samples, crew: Crew) -> None:
    """All denied keys are there, and their denials are those of the counter.

    A killed process may have counted one of the two, and a newcomer of a pane that two processes
    find at a time may be nobody's; each of those is in the error of every key.
    """
    top = {key: value for (name, _, key), value in samples.items() if name.endswith("top_denied")}
    if not crew.track_top:
        assert top == {}
        return
    assert set(top) == set(hammer.KEYS)
    denied = samples["nanolimit_decisions_total", "web", "denied"]
    with shared.watch("web") as watch:
        errors = sum(each.error for each in watch.top(len(top)))
    assert denied - crew.killed <= sum(top.values()) <= denied + errors + crew.killed


@contextmanager
def crew_of(folder: Path, track_top: int) -> Iterator[Crew]:
    crew = Crew(folder, track_top)
    try:
        yield crew
    finally:
        crew.close()


@pytest.mark.parametrize("track_top", [0, 20])
def test_exactly_the_checks_that_returned(tables: Path, tmp_path: Path, track_top: int) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    last = 0
    with crew_of(tmp_path, track_top) as crew:
        for _ in range(6):
            crew.hire()
            crew.go()
            for _ in range(KILLED):
                victim = chance.choice(crew.workers)
                crew.wait_for(victim, chance.randrange(1, 20_000))
                # A scrape under load, by one who is under load itself.
                before = crew.counts.returned()
                crew.check(
                    decisions(scrape(victim.port)), before=before, going_on=len(crew.workers)
                )
                crew.wait_for(victim, chance.randrange(1, 10_000))
                crew.kill(victim)
            for worker in crew.workers:
                crew.wait_for(worker, 1_000)
            crew.stop()

            returned = crew.counts.returned()
            first, *others = [scrape(worker.port) for worker in crew.workers]
            assert len(others) == WORKERS - KILLED - 1
            assert all(other == first for other in others)
            number = decisions(first)
            print(f"{returned} returned, {number} scraped, {crew.killed} killed")
            crew.check(number, before=returned)
            assert number > last
            last = number

            assert first["nanolimit_decisions_total", "web", "allowed"] > 0
            assert first["nanolimit_decisions_total", "web", "denied"] > 0
            assert first["nanolimit_keys", "web", ""] == len(hammer.KEYS)
            for name in ("overflows_total", "evictions_total"):
                assert first[f"nanolimit_{name}", "web", ""] == 0
            # And so does one who only looks.
            registry = CollectorRegistry()
            with shared.watch("web") as watch:
                prometheus.register(watch, registry=registry)
                assert samples_of(generate_latest(registry)) == first
            check_keys(first, crew)
        assert crew.killed == 12


def test_scrapes_over_http_while_the_limiter_is_closed_again_and_again(
    tables: Path, restless: None
) -> None:
    """Whole answers, none of them an error, and no hang."""
    registry = CollectorRegistry()
    # It is read first, so that the limiter is closed when a scrape has just begun.
    first, begun = Table("first"), threading.Event()
    first.before = begun.set
    prometheus.register(first, registry=registry)
    whole = len(MEASURES)  # decisions have two results, and no keys are told
    server, serving = start_http_server(0, "127.0.0.1", registry)
    stop = threading.Event()
    failures: list[BaseException] = []
    sizes: list[int] = []

    def scraper() -> None:
        try:
            while not stop.is_set():
                sizes.append(len(scrape(server.server_port)))
        except BaseException as error:
            failures.append(error)
            begun.set()

    scraping = threading.Thread(target=scraper)
    scraping.start()
    deadline = time.monotonic() + PATIENCE_S
    try:
        while not failures and (len(sizes) < 200 or len(set(sizes)) < 2):
            assert time.monotonic() < deadline, "it never met one open and one closed"
            with RateLimiter(5, per=60, shared="web", max_keys=1_000) as limiter:
                prometheus.register(limiter, registry=registry)
                limiter.allow("me")
                if not failures:
                    begun.clear()
                    begun.wait(1.0)
    finally:
        stop.set()
        scraping.join(PATIENCE_S)
        server.shutdown()
        server.server_close()
        serving.join(PATIENCE_S)
    assert not scraping.is_alive()
    assert not serving.is_alive()
    assert failures == []
    assert set(sizes) == {whole, 2 * whole}
