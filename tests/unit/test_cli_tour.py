"""The tour, the demo and the short benchmark: they run, and show what they say."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
rich_console = pytest.importorskip("rich.console", reason="nanolimit[cli] is not installed")

from nanolimit import telemetry  # noqa: E402
from nanolimit.cli import bench, command, tour  # noqa: E402

if TYPE_CHECKING:
    from pathlib import Path


def test_tour() -> None:
    out = io.StringIO()
    tour.show(rich_console.Console(file=out, width=200))
    text = out.getvalue()
    lines = [" ".join(line.split()) for line in text.splitlines()]
    answers = [line.split()[-1] for line in lines if line.startswith('limiter.allow("user:42") ')]
    assert answers == ["True"] * 5 + ["False", "False", "True"]
    assert any("allowed=False remaining=0 retry_after=48 s reset_after=56 s" in x for x in lines)
    assert "events ['denied: user:42 at api, cost 5']" in lines
    assert any("Stats(allowed=7, denied=4," in line for line in lines)
    # It leaves nothing behind.
    assert not telemetry.detach("tour")


def test_bench_has_its_control_rows(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.run(["bench", "--rounds", "3", "--calls", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    controls = [row["name"] for row in found["rows"] if row["control"]]
    assert controls == [bench.EMPTY, bench.FLOOR]
    floor = next(row for row in found["rows"] if row["name"] == bench.FLOOR)
    assert floor["ratio_to_floor"] == 1.0
    assert sum(row["name"].startswith("allow,") for row in found["rows"]) == 3
    assert (found["rounds"], found["calls"]) == (3, 1000)
    assert command.run(["bench", "--rounds", "3", "--calls", "1000"]) == 0
    out = capsys.readouterr().out
    assert "control: the empty loop" in out
    assert re.search(r"\(the floor\)\s+[\d.]+\s+1\.00", out)


def test_bench_rows_do_what_they_say() -> None:
    """The hand-written limiter of the benchmark limits, too."""
    limiter = bench.DequeLimiter(3, 3600.0)
    assert [limiter.allow(key) for key in "aaabaab"] == [True, True, True, True, False, False, True]


#: What matplotlib says once on a busy machine.
FONTS = "Matplotlib is building the font cache; this may take a moment.\n"


def demo(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nanolimit.cli.demo", *arguments],
        cwd=path,
        env={**os.environ, "MPLCONFIGDIR": str(path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="the extra nanolimit[plot] is not installed")
    done = demo(tmp_path)
    assert (done.returncode, done.stderr.replace(FONTS, "")) == (0, "")
    picture = tmp_path / "demo" / "replay.png"
    assert done.stdout.rstrip().splitlines()[-1] == str(picture)
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "requests      200,000 of" in done.stdout
    log = tmp_path / "own.log"
    log.write_text('{"ts": 1, "ip": "a"}\n')
    picture.unlink()
    done = demo(tmp_path, str(log))
    assert (done.returncode, done.stderr) == (0, "")
    assert "requests      1 of 1 users" in done.stdout
    assert picture.exists()
    done = demo(tmp_path, str(tmp_path / "none.log"))
    assert done.returncode == 1
    assert "none.log" in done.stderr
    assert demo(tmp_path, "a", "b").returncode == 2
