"""Workers at one table are killed, at random and at every point of the core that is named.

A short run of benchmarks/kill.py, which see for what it checks; the long one is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sharing import needs_shared

pytestmark = needs_shared

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"

SOAK = os.environ.get("NANOLIMIT_SOAK", "") not in ("", "0")


def kill(deaths: int, *options: str, source: Path | None = None) -> dict[str, Any]:
    """Run the stress, and give what it found; fails with what it says is wrong."""
    environment = dict(os.environ)
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    done = subprocess.run(
        # A machine that runs tests may be busy with others: what hangs hangs for longer.
        [
            sys.executable, str(SCRIPT), "--json", "--patience", "10",
            "--deaths", str(deaths * 50 if SOAK else deaths), *options,
        ],
        capture_output=True, text=True, check=False, env=environment,
        timeout=3_600 if SOAK else 120,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.fail(f"kill.py: {done.returncode}\n{done.stderr}"[:8_000])
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["wrong"] == []
    assert found["deaths"] >= deaths
    return found


def test_killed_at_random() -> None:
    found = kill(450, "--seconds-per-round", "0.2")
    assert len(found["rounds"]) == 9, "not every kind of table was used"
    assert all(accepts > 0 for _, _, _, accepts, *_ in found["rounds"])


def test_killed_at_every_point(points: Path) -> None:
    """It fails by itself if nobody died at one of them."""
    found = kill(500, "--points", "--seconds-per-round", "0.2", source=points)
    assert len(found["points"]) > 30
