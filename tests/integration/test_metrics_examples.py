"""The examples of metrics at work, and the code of docs/observability.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server import EXAMPLES, WORKERS, Server
from tools import at_hand

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "observability.md"
USERS = ("alice", "bob")
LIMIT = 20


def scrape(port: int) -> dict[tuple[str, ...], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for label, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_any_worker_of_gunicorn_tells_of_all(tables: Path, tmp_path: Path) -> None:
    server = Server(
        "gunicorn", "--bind", "fd://{fd}", "--workers", str(WORKERS), "--chdir", str(EXAMPLES),
        "--no-control-socket", "metrics_prometheus:app",
        limit=f"{LIMIT}/hour", table="web", log=tmp_path / "log", workers=WORKERS,
    )  # fmt: skip
    with server:
        before = scrape(server.port)
        pids: set[int] = set()
        answers: Counter[bool] = Counter()
        for _ in range(2 * LIMIT):
            for user in USERS:
                answer = server.ask(user, timeout_s=30)
                pids.add(answer["pid"])
                answers[answer["allowed"]] += 1
        assert len(pids) > 1
        assert answers == {True: 2 * LIMIT, False: 2 * LIMIT}

        name = "nanolimit_decisions_total"
        last = scrape(server.port)
        for result, allowed in (("allowed", True), ("denied", False)):
            assert last[name, "web", result] - before[name, "web", result] == answers[allowed]
        for user in USERS:
            assert last["nanolimit_top_denied", user, "web"] == LIMIT
        # Whichever answers, it says the same; and so do those that follow on killed ones.
        for _ in range(3):
            assert all(scrape(server.port) == last for _ in range(2 * WORKERS))
            server.kill_a_worker()
            last = scrape(server.port)
            assert last["nanolimit_top_denied", USERS[0], "web"] == LIMIT


def test_opentelemetry(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(at_hand(EXAMPLES / "metrics_otel.py"))],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    (scope,) = told["resource_metrics"][0]["scope_metrics"]
    points: dict[tuple[Any, ...], int] = {
        (metric["name"], *point["attributes"].values()): point["value"]
        for metric in scope["metrics"]
        for point in metric["data"]["data_points"]
    }
    assert points["nanolimit.decisions", "api", "allowed"] == 6
    assert points["nanolimit.decisions", "api", "denied"] == 3
    assert points["nanolimit.top_denied", "api", "mallory"] == 3


BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks() -> list[str]:
    return BLOCK.findall(DOCUMENT.read_text("utf-8")) if DOCUMENT.exists() else []


@pytest.mark.parametrize("number", range(len(blocks())))
def test_the_code_of_the_document_runs(number: int, tables: Path, tmp_path: Path) -> None:
    # The table that the document's exporter looks at is there, as it would be.
    code = (
        "from nanolimit import RateLimiter\n"
        "web = RateLimiter('100/minute', shared='web', max_keys=1_000)\n"
        + blocks()[number].replace("9377", "0")  # any port that is free
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_the_document_is_at_hand() -> None:
    at_hand(DOCUMENT)
    assert len(blocks()) >= 5


def test_the_document_names_every_metric() -> None:
    text = at_hand(DOCUMENT).read_text("utf-8")
    from nanolimit.metrics.measure import MEASURES
    from nanolimit.metrics.prometheus import _family

    for measure in MEASURES:
        suffix = "_total" if measure.kind == "counter" else ""
        assert f"`{_family(measure).name}{suffix}`" in text
        assert f"`{measure.name}`" in text


def test_the_document_quotes_the_alert_rules() -> None:
    rules = at_hand(DOCUMENT.parent / "grafana" / "alerts.yml").read_text("utf-8")
    quoted = re.findall(r"^```yaml\n(.*?)^```", DOCUMENT.read_text("utf-8"), re.M | re.S)
    rules_quoted = [each for each in quoted if "expr:" in each]
    assert rules_quoted
    for each in rules_quoted:
        lines = [line.strip() for line in each.splitlines() if line.strip() not in ("", "...")]
        known = {line.strip() for line in rules.splitlines()}
        assert [line for line in lines if line not in known] == []
