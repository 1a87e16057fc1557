"""Leases on a real redis-server: never one unit too many, and what is not used comes back."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

pytest.importorskip("redis")

import redis_journal
from nanolimit import Quota
from redis_holders import Held, Proof, Use, hold, hold_in_threads
from redis_server import RedisServer


@pytest.fixture(scope="module")
def shared_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(shared_server: RedisServer) -> RedisServer:
    """A server that runs well; each test has it to itself."""
    shared_server.ask("FLUSHALL")
    return shared_server


def processes(work: Callable[..., Held], arguments: Sequence[tuple[Any, ...]]) -> list[Held]:
    """Run it once in a process for each of `arguments`."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(len(arguments)) as pool:
        told = pool.starmap(work, arguments)
    assert [each.wrong for each in told] == [[]] * len(told)
    assert sum(each.failures for each in told) == 0
    return told


def uses_of(told: Sequence[Held]) -> list[Use]:
    return [use for each in told for use in each.uses]


def journal(server: RedisServer) -> list[bytes]:
    entries: list[bytes] = server.ask("LRANGE", redis_journal.JOURNAL, 0, -1, timeout_s=60)
    return entries


# --- never one too many


def test_eight_clients_with_leases_and_merging_for_thirty_seconds(server: RedisServer) -> None:
    told = processes(hold, [(server.url, [Quota(400, per=1.0)], 30.0, seed) for seed in range(8)])
    proof = Proof(journal(server), uses_of(told))
    assert proof.faults == []
    # It was no quiet time: there was a window that was just full, and all was done that can be.
    assert proof.fullest["nl:{s:hot}:hot:1000000"] == 400
    assert sum(each.leased for each in told) > 500
    assert sum(each.denied for each in told) > 500
    for verb in ("take_one", "take_some", "grant", "return", "batch", "tell", "look"):
        assert proof.seen[verb] > 50
    assert proof.seen["grant denied"] > 10
    # And nobody was told of more than was counted.
    assert sum(each.allowed for each in told) > 30 * 200


def test_threads_and_two_quotas(server: RedisServer) -> None:
    quotas = [Quota(60, per=0.4), Quota(250, per=2.0)]
    told = processes(hold_in_threads, [(server.url, quotas, 6.0, seed) for seed in range(4)])
    proof = Proof(journal(server), uses_of(told))
    assert proof.faults == []
    assert proof.fullest["nl:{s:hot}:hot:400000"] > 50
    assert proof.fullest["nl:{s:hot}:hot:2000000"] > 220
    assert sum(each.leased for each in told) > 50
    assert proof.seen["return"] > 10
