"""Deployments: servers that come and go, and limits that change, without a lost count."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, SharedTableError
from server import Server, gunicorn, uvicorn

pytestmark = pytest.mark.usefixtures("tables")

USER = "alice"
PATIENCE_S = 20.0


def ask(server: Server, times: int) -> list[Any]:
    return [server.ask(USER) for _ in range(times)]


def allowed(answers: list[Any]) -> int:
    return sum(answer["allowed"] for answer in answers)


def test_counts_survive_a_restart_of_all_processes(tmp_path: Path) -> None:
    with gunicorn(limit="20/hour", log=tmp_path / "log", workers=2) as server:
        assert allowed(ask(server, 15)) == 15
    with gunicorn(limit="20/hour", log=tmp_path / "log", workers=2) as server:
        answers = ask(server, 15)
        assert allowed(answers) == 5
        assert 3500 < answers[-1]["retry_after"] <= 3600


def test_two_servers_of_different_kinds_share_one_count(tmp_path: Path) -> None:
    with gunicorn(limit="20/hour", log=tmp_path / "wsgi.log", workers=2) as wsgi:
        with uvicorn(limit="20/hour", log=tmp_path / "asgi.log", workers=2) as asgi:
            assert allowed(ask(wsgi, 12)) == 12
            assert allowed(ask(asgi, 12)) == 8
            assert allowed(ask(wsgi, 3)) == 0


def test_a_rolling_deployment_changes_the_limit_for_all(tmp_path: Path) -> None:
    """20 and 30 have the same layout: the table stays, and the old workers follow."""
    with gunicorn(limit="20/hour", log=tmp_path / "old.log", workers=2) as old:
        assert allowed(ask(old, 25)) == 20
        with gunicorn(limit="30/hour", log=tmp_path / "new.log", workers=2) as new:
            answers = ask(old, 4)
            assert allowed(answers) == 4
            assert {answer["limit"] for answer in answers} == {30}
            assert allowed(ask(new, 10)) == 6
            assert allowed(ask(old, 10)) == 0
            # Who starts sets what it was told, also in place of an old worker.
            old.kill_a_worker()
            deadline = time.monotonic() + PATIENCE_S
            while new.ask(USER)["limit"] != 20:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_a_limit_of_another_layout_gets_a_table_of_its_own(tmp_path: Path) -> None:
    """Old workers go on with the old table until they are restarted; new ones begin anew."""
    with gunicorn(limit="20/hour", log=tmp_path / "old.log", workers=2) as old:
        assert allowed(ask(old, 25)) == 20
        with gunicorn(limit="1000/hour", log=tmp_path / "new.log", workers=2) as new:
            assert allowed(ask(new, 30)) == 30
            assert allowed(ask(old, 5)) == 0
            limiter = RateLimiter("1000/hour", shared="web")
            assert limiter.peek(USER).remaining == 1000 - 30
            limiter.close()


def test_a_deployment_that_insists_on_its_limit_says_what_differs(tmp_path: Path) -> None:
    with gunicorn(limit="20/hour", log=tmp_path / "log", workers=2) as server:
        ask(server, 1)
        with pytest.raises(SharedTableError, match=r"30(.|\n)*nanolimit rm"):
            RateLimiter("30/hour", shared="web")
        assert allowed(ask(server, 25)) == 19
