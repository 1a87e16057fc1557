"""A master that is root, workers that are not: who may join, and what the others are told."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter, SharedTableError

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user"
)

NOBODY = 65534
PATIENCE_S = 30.0


def as_worker(limiter: RateLimiter) -> Any:
    """Fork, become nobody, and ask twice; what that worker was told."""
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    worker = context.Process(target=_ask, args=(writer, limiter))
    worker.start()
    writer.close()
    try:
        assert reader.poll(PATIENCE_S), "the worker hangs"
        return reader.recv()
    finally:
        reader.close()
        worker.join(5)
        worker.kill()
        worker.join()


def _ask(writer: Connection, limiter: RateLimiter) -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    try:
        writer.send([limiter.allow("user"), limiter.allow("user")])
    except SharedTableError as error:
        writer.send(str(error))


def test_workers_inherit_memory_without_a_name() -> None:
    with RateLimiter("3/hour", shared=True) as limiter:
        assert limiter.allow("user")
        assert as_worker(limiter) == [True, True]
        assert as_worker(limiter) == [False, False]
        assert not limiter.allow("user")


def test_workers_join_a_table_of_their_group(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables.chmod(0o755)
    monkeypatch.setenv("NANOLIMIT_DIR", str(tables / "shop"))
    with RateLimiter("3/hour", shared="api", mode=0o660, group=NOBODY) as limiter:
        assert limiter.allow("user")
        assert as_worker(limiter) == [True, True]
        assert as_worker(limiter) == [False, False]
        assert not limiter.allow("user")
        assert (tables / "shop").stat().st_mode & 0o777 == 0o770
        assert (tables / "shop" / "api").stat().st_mode & 0o777 == 0o660


def test_workers_are_told_why_they_can_not_join(tables: Path) -> None:
    with RateLimiter("3/hour", shared="api") as limiter:
        told = as_worker(limiter)
        assert "Permission denied" in told
        assert "mode=0o660" in told
        assert limiter.allow("user")
        assert limiter.stats().allowed == 1
