"""Coalescing, over a wire that keeps what it is handed: which calls go out together, and when."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any

import pytest

from nanolimit import Quota
from nanolimit.redis import AsyncRedisRateLimiter, script
from nanolimit.redis import aio as aio_module
from nanolimit.redis import dialog as dialog_module
from nanolimit.redis.coalesce import Coalescer
from nanolimit.redis.fault import Unavailable
from nanolimit.redis.name import Names
from nanolimit.redis.script import Arguments
from store import Store

QUOTAS = (Quota(5, per=1.0),)
NAMES = Names("nl", None, QUOTAS)


class Writes:
    """A wire as `AsyncWire`: it packs calls when it is connected, and writes once in each turn."""

    def __init__(self, store: Store | None = None) -> None:
        self.store = store or Store()
        # name, first list, units; of a batch, how many lists
        self.writes: list[list[tuple[str, bytes, int]]] = []
        self.connected = asyncio.Event()
        self.connected.set()
        self.replies = asyncio.Event()
        self.replies.set()
        self.fault: BaseException | None = None
        self.faults_by_key: dict[bytes, Unavailable] = {}
        self.once: list[Unavailable] = []
        self.clustered = False
        self.slots = None
        self.timeout_s = 1.0
        self._out: list[tuple[Any, Any, list[int], asyncio.Future[Any], Any]] = []

    def _pack(
        self, what: Any, keys: Sequence[bytes], args: Sequence[Any], tell: Any
    ) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        if not self._out:
            loop.call_soon(self._write)
        words = [int(arg) for arg in args]
        assert len(words) == len(args)
        count = len(keys)
        names = [*keys]
        assert len(names) == count
        reply = loop.create_future()
        self._out.append((what, names, words, reply, tell))
        return reply

    def _write(self) -> None:
        out, self._out = self._out, []
        self.writes.append([
            (what.name, keys[0] if keys else b"}", len(keys) if what is script.BATCH else words[0])
            for what, keys, words, _, _ in out
        ])  # fmt: skip
        for what, keys, words, reply, tell in out:
            answer: Any = self.faults_by_key.get(keys[0]) if keys else b""
            if answer is not None and answer in self.once:
                del self.faults_by_key[keys[0]]
            if answer is None:
                answer = self.store.ask(what, keys, words)
            if not reply.done():
                reply.set_result(answer)
                if tell is not None and self.replies.is_set() and type(answer) is not Unavailable:
                    tell(answer)

    async def run(self, what: Any, keys: Sequence[bytes], args: Sequence[Any] = ()) -> Any:
        [reply] = await self.run_many([(what, keys, args)])
        if isinstance(reply, Unavailable):
            raise reply
        return reply

    async def run_many(self, calls: Iterable[Any], tells: Iterable[Any] = ()) -> list[Any]:
        calls = list(calls)
        if self.fault is not None:
            raise self.fault
        await self.connected.wait()
        begun = [
            self._pack(*call, tell)
            for call, tell in itertools.zip_longest(calls, tells, fillvalue=None)
            if call is not None
        ]
        replies = [await reply for reply in begun]
        await self.replies.wait()
        return replies

    async def drain(self) -> None:
        pass

    async def aclose(self) -> None:
        pass


class Asker:
    """A coalescer with the verbs of a limiter that it takes."""

    def __init__(self, quotas: tuple[Quota, ...] = QUOTAS, **options: Any) -> None:
        self.wire = Writes()
        self.arguments = Arguments(quotas)
        self.names = Names("nl", None, quotas)
        self.coalescer = Coalescer(self.wire, self.arguments, **options)  # type: ignore[arg-type]

    def take(self, key: str = "k", cost: int = 1) -> Coroutine[Any, Any, Any]:
        arguments = self.arguments
        return self.coalescer.run(arguments.take, self.names.of(key), arguments.of(cost))

    def ask(self, what: script.Script, *keys: str, cost: int = 1) -> Coroutine[Any, Any, Any]:
        names = [name for key in keys for name in self.names.of(key)]
        return self.coalescer.run(what, names, self.arguments.of(cost))

    def written(self) -> list[list[str]]:
        """Each write, as "name key units"."""
        return [
            [f"{name} {first.split(b'}')[0][6:].decode()} {units}" for name, first, units in write]
            for write in self.wire.writes
        ]


def tasks_of(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(call) for call in calls]


async def turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


# --- what goes out


def test_one_alone_goes_out_as_it_is() -> None:
    async def run() -> None:
        asker = Asker()
        assert await asker.take() == 0
        assert asker.written() == [["take_one k 1"]]
        assert not asker.coalescer._tasks

    asyncio.run(run())


def test_one_alone_waits_for_no_turn_more_than_by_itself() -> None:
    async def passed(run: Any) -> int:
        asker = Asker()
        calling = run(asker)
        task = asyncio.create_task(calling)
        number = 0
        while not asker.wire.writes:
            await asyncio.sleep(0)
            number += 1
        await task
        return number

    direct = asyncio.run(
        passed(lambda a: a.wire.run(a.arguments.take, NAMES.of("k"), a.arguments.of(1)))
    )
    assert asyncio.run(passed(lambda a: a.take())) == direct


def test_a_hot_key_is_one_more_call_in_the_same_write() -> None:
    async def run() -> None:
        asker = Asker((Quota(40, per=1.0),))
        answers = await asyncio.gather(*[asker.take() for _ in range(64)])
        assert answers[:40] == [0] * 40
        assert all(wait == 1_000_000 for wait in answers[40:])
        assert asker.written() == [["take_one k 1", "take_some k 63"]]

    asyncio.run(run())


def test_what_is_granted_goes_to_the_first_ones_and_the_wait_is_that_of_take() -> None:
    async def run() -> None:
        asker = Asker()
        assert await asker.take() == 0
        asker.wire.store.now_s += 0.25
        merged = await asyncio.gather(*[asker.take() for _ in range(8)])
        assert merged == [0, 0, 0, 0, *[750_000] * 4]
        assert await asker.take() == 750_000
        assert asker.written()[1] == ["take_one k 1", "take_some k 7"]

    asyncio.run(run())


def test_two_are_no_take_some() -> None:
    async def run() -> None:
        asker = Asker()
        assert await asyncio.gather(asker.take(), asker.take()) == [0, 0]
        assert asker.written() == [["take_one k 1", "take_one k 1"]]

    asyncio.run(run())


def test_other_keys_are_one_more_call_in_the_same_write() -> None:
    async def run() -> None:
        asker = Asker()
        for turn in range(6):
            waits = await asyncio.gather(*[asker.take(str(number)) for number in range(64)])
            assert waits == [0 if turn < 5 else 1_000_000] * 64
        assert asker.written() == [["take_one 0 1", "batch 1 63"]] * 6

    asyncio.run(run())


def test_one_other_key_is_no_batch() -> None:
    async def run() -> None:
        asker = Asker()
        assert await asyncio.gather(asker.take("a"), asker.take("b")) == [0, 0]
        assert asker.written() == [["take_one a 1", "take_one b 1"]]

    asyncio.run(run())


def test_each_key_of_a_batch_is_told_its_own() -> None:
    async def run() -> None:
        asker = Asker((Quota(3, per=1.0), Quota(4, per=60.0)))
        await asyncio.gather(*[asker.take("b") for _ in range(3)])
        asker.wire.store.now_s += 1
        keys = ("a", "b", "c", "b", "c", "d")
        assert await asyncio.gather(*map(asker.take, keys)) == [0, 0, 0, 59_000_000, 0, 0]
        # Six lists of three keys; and those that came again stand behind it.
        assert asker.written()[-1] == ["take a 1", "batch b 6", "take b 1", "take c 1"]

    asyncio.run(run())


def test_nodes_of_a_cluster_get_a_call_for_each_key() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.clustered = True
        await asyncio.gather(*[asker.take(str(number)) for number in range(64)])
        assert asker.written() == [[f"take_one {number} 1" for number in range(64)]]

    asyncio.run(run())


def test_a_url_that_names_a_cluster() -> None:
    async def run() -> None:
        asker = Asker()
        fault = Unavailable("CROSSSLOT Keys in request don't hash to the same slot")
        asker.wire.faults_by_key[NAMES.of("b")[0]] = fault
        asker.wire.once.append(fault)
        calls = [asker.take(key) for key in "abcd"]
        assert await asyncio.wait_for(asyncio.gather(*calls), 20) == [0] * 4
        singly = [f"take_one {key} 1" for key in "abcd"]
        assert asker.written() == [["take_one a 1", "batch b 3"], singly[1:]]
        # It is known from then on.
        await asyncio.gather(*[asker.take(key) for key in "abcd"])
        assert asker.written()[2:] == [singly]
        assert {len(log) for log in asker.wire.store.logs.values()} == {2}

    asyncio.run(run())


def test_other_costs_and_scripts_are_calls_of_their_own_in_the_same_write() -> None:
    async def run() -> None:
        asker = Asker((Quota(100, per=1.0),))
        await asyncio.gather(
            asker.take("a"), asker.take("b", 2), asker.ask(script.TELL, "c"), asker.take("a"),
            asker.take("a"), asker.ask(script.LOOK, "d"), asker.take("b", 2),
        )  # fmt: skip
        [write] = asker.written()
        assert sorted(write) == sorted(
            ["take_one a 1", "take_one b 2", "tell c 1", "take_some a 2", "look d 1",
             "take_one b 2"]
        )  # fmt: skip

    asyncio.run(run())


def test_a_merge_never_passes_another_call_for_the_key() -> None:
    async def run() -> None:
        asker = Asker()
        answers = await asyncio.gather(
            asker.take(), asker.take(), asker.take(cost=3), asker.take(), asker.take(),
            asker.ask(script.RESET, "k", cost=0), asker.take(), asker.take(),
            asker.ask(script.BATCH, "j", "k"), asker.take(), asker.take("j"),
        )  # fmt: skip
        assert asker.written() == [
            [
                "take_one k 1", "take_one k 1", "take_one k 3", "take_some k 2", "reset k 0",
                "take_some k 2", "batch j 2", "take_one k 1", "take_one j 1",
            ]
        ]  # fmt: skip
        assert answers == [0, 0, 0, 1_000_000, 1_000_000, 1, 0, 0, b"0 0", 0, 0]

    asyncio.run(run())


def test_the_next_turn_is_another_write() -> None:
    async def run() -> None:
        asker = Asker((Quota(100, per=1.0),))
        tasks = tasks_of(asker.take() for _ in range(3))
        await turns(1)
        tasks += tasks_of(asker.take() for _ in range(3))
        await asyncio.gather(*tasks)
        assert asker.written() == [["take_one k 1", "take_some k 2"]] * 2

    asyncio.run(run())


@pytest.mark.parametrize("hot", [False, True])
def test_who_has_asked_together_goes_on_together(hot: bool) -> None:
    async def run() -> None:
        asker = Asker((Quota(1_000, per=1.0),))

        async def ask(number: int) -> None:
            for _ in range(5):
                assert await asker.take("k" if hot else str(number)) == 0

        await asyncio.gather(*map(ask, range(64)))
        other = ["take_one k 1", "take_some k 63"] if hot else ["take_one 0 1", "batch 1 63"]
        assert asker.written() == [other] * 5

    asyncio.run(run())


def test_several_quotas() -> None:
    async def run() -> None:
        asker = Asker((Quota(9, per=1.0), Quota(4, per=60.0)))
        answers = await asyncio.gather(*[asker.take() for _ in range(6)])
        assert answers == [0, 0, 0, 0, 60_000_000, 60_000_000]
        assert asker.written() == [["take k 1", "take_some k 5"]]

    asyncio.run(run())


def test_many_costs_before_do_not_keep_requests_from_merging() -> None:
    async def run() -> None:
        asker = Asker((Quota(1_000, per=1.0),))
        for cost in range(2, 400):
            asker.arguments.of(cost)
        await asyncio.gather(*[asker.take() for _ in range(4)])
        assert asker.written() == [["take_one k 1", "take_some k 3"]]

    asyncio.run(run())


# --- bounds


def test_a_huge_turn_is_several_writes_in_order() -> None:
    async def run() -> None:
        asker = Asker(most_calls=10)
        waits = await asyncio.gather(*[asker.take(str(number)) for number in range(35)])
        assert waits == [0] * 35
        # Calls and the keys of a batch are ten in a write at most.
        assert asker.written() == [
            ["take_one 0 1"], ["batch 1 10"], ["batch 11 10"], ["batch 21 10"], ["batch 31 4"],
        ]  # fmt: skip

    async def clustered() -> None:
        asker = Asker(most_calls=10)
        asker.wire.clustered = True
        assert await asyncio.gather(*[asker.take(str(number)) for number in range(35)]) == [0] * 35
        expected = [f"take_one {number} 1" for number in range(35)]
        assert asker.written() == [expected[at : at + 10] for at in range(0, 35, 10)]

    async def as_it_comes() -> None:
        asker = Asker()
        assert (
            await asyncio.gather(*[asker.take(str(number)) for number in range(600)]) == [0] * 600
        )
        assert asker.written() == [
            ["take_one 0 1", "batch 1 256"],
            ["batch 257 256", "batch 513 87"],
        ]

    asyncio.run(run())
    asyncio.run(clustered())
    asyncio.run(as_it_comes())


def test_who_comes_while_others_are_left_joins_them_or_stands_behind() -> None:
    async def run() -> None:
        asker = Asker(most_calls=4)
        tasks = tasks_of(asker.take(str(number)) for number in range(10))
        await turns(2)
        assert len(asker.wire.writes) == 1
        tasks += tasks_of(asker.take(key) for key in ("late", "9", "late", "5"))
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert asker.written() == [
            ["take_one 0 1"], ["batch 1 4"], ["batch 5 4"],
            ["batch 9 2", "take_one 9 1", "take_one late 1"], ["take_one 5 1"],
        ]  # fmt: skip
        # And then it is as before.
        await asker.take("z")
        assert asker.written()[-1] == ["take_one z 1"]
        assert not asker.coalescer._last
        assert asker.coalescer._batch is None

    asyncio.run(run())


def test_who_comes_while_others_are_left_stands_behind_them() -> None:
    async def run() -> None:
        asker = Asker(most_calls=4)
        asker.wire.clustered = True
        tasks = tasks_of(asker.take(str(number)) for number in range(10))
        await turns(2)
        assert len(asker.wire.writes) == 1
        # The wire has had 5 already: one that asks for it now does not join.
        tasks += tasks_of(asker.take(key) for key in ("late", "9", "late", "5"))
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        expected = [f"take_one {number} 1" for number in range(9)]
        expected += ["take_some 9 2", "take_some late 2", "take_one 5 1"]
        assert [call for write in asker.written() for call in write] == expected
        assert max(map(len, asker.wire.writes)) == 4
        # And then it is as before.
        await asker.take("z")
        assert asker.written()[-1] == ["take_one z 1"]
        assert not asker.coalescer._last

    asyncio.run(run())


def test_a_merge_is_bounded() -> None:
    async def run() -> None:
        asker = Asker(most_merged=8)
        answers = await asyncio.gather(*[asker.take() for _ in range(20)])
        assert asker.written() == [["take_one k 1", *["take_some k 8"] * 2, "take_some k 3"]]
        assert answers.count(0) == 5

    asyncio.run(run())


# --- who leaves


def test_a_cancelled_one_that_was_not_sent_is_not_counted() -> None:
    async def run() -> None:
        asker = Asker()
        tasks = tasks_of(asker.take() for _ in range(6))
        tasks.append(asyncio.create_task(asker.take("k", 2)))
        asyncio.get_running_loop().call_soon(lambda: [tasks[at].cancel() for at in (1, 3, 6)])
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(end) for end in ends] == [
            asyncio.CancelledError if at in (1, 3, 6) else int for at in range(7)
        ]
        assert len(asker.wire.store.logs[NAMES.of("k")[0]]) == 4

    async def cancelled_in_the_same_turn() -> None:
        asker = Asker()
        first, *rest = tasks_of(asker.take() for _ in range(4))

        async def cancel() -> None:
            for task in rest[:2]:
                task.cancel()

        # It runs in the turn in which they ask, behind them: before `_turn`.
        await asyncio.gather(cancel(), first, *rest, return_exceptions=True)
        assert asker.written() == [["take_one k 1", "take_one k 1"]]

    asyncio.run(run())
    asyncio.run(cancelled_in_the_same_turn())


@pytest.mark.parametrize("lists", [1, 2])
def test_who_has_left_a_batch_is_not_counted(lists: int) -> None:
    quotas = (Quota(5, per=1.0), Quota(9, per=10.0))[:lists]
    take = "take_one" if lists == 1 else "take"

    async def run(*leave: int) -> list[list[str]]:
        asker = Asker(quotas)
        tasks = tasks_of(asker.take(str(number)) for number in range(5))

        async def cancel() -> None:
            for at in leave:
                tasks[at].cancel()

        ends = await asyncio.gather(cancel(), *tasks, return_exceptions=True)
        left = [at for at, end in enumerate(ends[1:]) if isinstance(end, asyncio.CancelledError)]
        assert left == [*leave]
        kept = [str(at) for at in range(5) if at not in leave]
        assert {*asker.wire.store.logs} == {name for key in kept for name in asker.names.of(key)}
        return asker.written()

    assert asyncio.run(run(2, 4)) == [[f"{take} 0 1", f"batch 1 {2 * lists}"]]
    assert asyncio.run(run(1, 2, 4)) == [[f"{take} 0 1", f"{take} 3 1"]]
    assert asyncio.run(run(1, 2, 3, 4)) == [[f"{take} 0 1"]]


def test_who_leaves_a_batch_while_it_connects_is_not_counted() -> None:
    async def run(*leave: int) -> list[str]:
        asker = Asker()
        asker.wire.connected.clear()
        tasks = tasks_of(asker.take(str(number)) for number in range(5))
        await turns(4)
        for at in leave:
            tasks[at].cancel()
        await turns(2)
        asker.wire.connected.set()
        ends = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        assert [at for at, end in enumerate(ends) if end != 0] == [*leave]
        assert len(asker.wire.store.logs) == 5 - len(leave)
        return [call for write in asker.written() for call in write if "batch" in call]

    assert asyncio.run(run(1, 3)) == ["batch 2 2"]
    assert asyncio.run(run(1, 2, 4)) == ["batch 3 1"]
    assert asyncio.run(run(1, 2, 3, 4)) == ["batch  0"]


def test_who_leaves_a_batch_that_was_sent_has_counted_and_the_others_get_theirs() -> None:
    async def run() -> None:
        asker = Asker((Quota(1, per=1.0),))
        await asker.take("3")
        asker.wire.replies.clear()
        tasks = tasks_of(asker.take(str(number)) for number in range(5))
        while len(asker.wire.writes) < 2:
            await turns(1)
        tasks[2].cancel()
        await turns(2)
        asker.wire.replies.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(ends[2], asyncio.CancelledError)
        assert [*ends[:2], *ends[3:]] == [0, 0, 1_000_000, 0]
        assert len(asker.wire.store.logs) == 5

    asyncio.run(run())


def test_if_all_have_left_nothing_is_sent_for_them() -> None:
    async def run() -> None:
        asker = Asker()
        first, *rest = tasks_of(asker.take() for _ in range(4))

        async def cancel() -> None:
            for task in rest:
                task.cancel()

        await asyncio.gather(cancel(), first, *rest, return_exceptions=True)
        assert asker.written() == [["take_one k 1"]]

    asyncio.run(run())


def test_one_that_is_cancelled_when_it_was_sent_keeps_its_place() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.replies.clear()
        tasks = tasks_of(asker.take() for _ in range(7))
        while not asker.wire.writes:
            await turns(1)
        tasks[2].cancel()
        await turns(2)
        asker.wire.replies.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert asker.written() == [["take_one k 1", "take_some k 6"]]
        assert [end == 0 for end in ends] == [True, True, False, True, True, False, False]
        assert len(asker.wire.store.logs[NAMES.of("k")[0]]) == 5

    asyncio.run(run())


def test_while_it_connects_nothing_is_sent_yet() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.connected.clear()
        tasks = tasks_of([asker.take() for _ in range(5)])
        tasks += tasks_of(
            [asker.take("j", 2), asker.take("j", 2), asker.take("j"), asker.take("j")]
        )
        await turns(5)
        for at in (1, 2, 6, 7, 8):
            tasks[at].cancel()
        await turns(2)
        asker.wire.connected.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert [end for end in ends if not isinstance(end, asyncio.CancelledError)] == [0] * 4
        logs = asker.wire.store.logs
        assert {key: len(log) for key, log in logs.items() if log} == {
            NAMES.of("k")[0]: 3, NAMES.of("j")[0]: 2,
        }  # fmt: skip

    asyncio.run(run())


def test_who_left_while_it_connects_has_no_place() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.connected.clear()
        tasks = tasks_of(asker.take() for _ in range(8))
        await turns(4)
        tasks[1].cancel()
        tasks[3].cancel()
        asker.wire.connected.set()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
        assert asker.written() == [["take_one k 1", "take_some k 5"]]
        assert [at for at, end in enumerate(ends) if end == 0] == [0, 2, 4, 5, 6]

    asyncio.run(run())


def test_whoever_cancels_all_tasks_leaves_nobody_hanging() -> None:
    async def run(number: int) -> None:
        asker = Asker()
        asker.wire.connected.clear()
        waiting = tasks_of(asker.take() for _ in range(4))
        await turns(number)
        for task in asyncio.all_tasks() - {asyncio.current_task(), *waiting}:  # type: ignore[arg-type]
            task.cancel()
        await turns(3)
        asker.wire.connected.set()
        ends = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert ends[0] == 0
        assert all(isinstance(end, Unavailable) and end.outcome_unknown for end in ends[1:])
        assert await asker.take() == 0
        assert await asyncio.gather(asker.take(), asker.take()) == [0, 0]

    asyncio.run(run(2))  # the sending task has not begun
    asyncio.run(run(4))


# --- what goes wrong


def test_each_gets_an_exception_of_its_own() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.faults_by_key[NAMES.of("bad")[0]] = Unavailable("OOM", outcome_unknown=True)
        ends = await asyncio.gather(
            *[asker.take(key) for key in ("bad", "good") * 3], return_exceptions=True
        )
        faults = ends[::2]
        assert all(isinstance(fault, Unavailable) for fault in faults)
        assert len(set(map(id, faults))) == 3
        assert {(fault.reason, fault.outcome_unknown) for fault in faults} == {("OOM", True)}  # type: ignore[union-attr]
        assert ends[1::2] == [0, 0, 0]

    asyncio.run(run())


def test_each_of_a_batch_gets_an_exception_of_its_own() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.faults_by_key[NAMES.of("b")[0]] = Unavailable("OOM", outcome_unknown=True)
        ends = await asyncio.gather(*map(asker.take, "abcd"), return_exceptions=True)
        assert ends[0] == 0
        assert len(set(map(id, ends[1:]))) == 3
        assert {(fault.reason, fault.outcome_unknown) for fault in ends[1:]} == {("OOM", True)}  # type: ignore[union-attr]

    asyncio.run(run())


def test_what_is_wrong_with_one_key_of_a_batch_is_told_to_him_who_asked_for_it() -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.store.ask = lambda what, keys, words: (  # type: ignore[method-assign]
            b"0 -1 17 !WRONGTYPE Operation against" if what is script.BATCH else 0
        )
        tasks = tasks_of(map(asker.take, "abcd"))
        await asyncio.wait(tasks)
        assert [tasks[at].result() for at in (0, 1, 3)] == [0, 0, 17]
        fault = tasks[2].exception()
        assert isinstance(fault, Unavailable)
        assert fault.reason == "WRONGTYPE Operation against"

    asyncio.run(run())


@pytest.mark.parametrize("fault", [Unavailable("gone"), RuntimeError("another loop")])
def test_a_wire_that_raises(fault: Exception) -> None:
    async def run() -> None:
        asker = Asker()
        asker.wire.fault = fault
        ends = await asyncio.gather(*[asker.take() for _ in range(5)], return_exceptions=True)
        assert [(type(end), str(end)) for end in ends] == [(type(fault), str(fault))] * 5
        asker.wire.fault = None
        assert await asyncio.gather(*[asker.take() for _ in range(3)]) == [0, 0, 0]

    asyncio.run(run())


@pytest.mark.parametrize("clustered", [False, True])
def test_an_interrupt_while_it_is_handed_over_leaves_nobody_hanging(clustered: bool) -> None:
    loop = asyncio.new_event_loop()
    asker = Asker(most_calls=9)
    asker.wire.clustered = clustered

    async def ask() -> list[Any]:
        calls = [asker.take(str(number // 2)) for number in range(12)]
        return await asyncio.gather(*calls, return_exceptions=True)

    async def interrupted(calls: object, tells: object) -> None:
        asker.wire.run_many = run_many  # type: ignore[method-assign]
        raise KeyboardInterrupt

    run_many = asker.wire.run_many
    task = loop.create_task(ask())
    loop.run_until_complete(turns(1))
    asker.wire.run_many = interrupted  # type: ignore[assignment, method-assign]
    with pytest.raises(KeyboardInterrupt):
        loop.run_until_complete(task)
    ends = loop.run_until_complete(asyncio.wait_for(task, 20))
    assert any(isinstance(end, asyncio.CancelledError) for end in ends)
    assert loop.run_until_complete(asker.take("z")) == 0
    loop.close()


# --- loops and limiters


def test_another_loop_and_a_forked_child_start_afresh() -> None:
    asker = Asker()
    left: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        left.extend(tasks_of(asker.take() for _ in range(4)))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())  # they ask in its last turn
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    assert asker.coalescer._calls
    loop.close()
    asker.wire.writes.clear()
    asker.wire._out.clear()

    async def ask() -> Any:
        return await asyncio.gather(*[asker.take() for _ in range(3)])

    assert asyncio.run(ask()) == [0, 0, 0]
    assert asker.written() == [["take_one k 1", "take_some k 2"]]

    async def fork() -> Any:
        tasks = tasks_of(asker.take() for _ in range(4))
        await turns(1)
        asker.coalescer.after_fork()
        for task in tasks:
            task.cancel()
        return await ask()

    asker.wire.store.now_s += 10
    asker.wire._out.clear()
    assert asyncio.run(fork()) == [0, 0, 0]


@pytest.mark.parametrize("first", ["coalescer", "arguments"])
def test_a_forked_child_merges_in_a_loop_of_its_own(first: str) -> None:
    asker = Asker()
    of_parent = asyncio.new_event_loop()
    of_parent.run_until_complete(asker.take())
    for each in sorted(("coalescer", "arguments"), key=lambda name: name != first):
        getattr(asker, each).after_fork()
    asker.wire.writes.clear()

    async def ask() -> None:
        await asyncio.gather(*[asker.take() for _ in range(3)])

    asyncio.run(ask())
    assert asker.written() == [["take_one k 1", "take_some k 2"]]
    of_parent.close()


def test_a_loop_besides_the_first_is_told_by_the_wire() -> None:
    asker = Asker()
    first = asyncio.new_event_loop()

    async def leave() -> list[asyncio.Task[Any]]:
        return tasks_of(asker.take() for _ in range(4))

    left = first.run_until_complete(leave())
    assert asker.coalescer._calls
    asker.wire.fault = RuntimeError("it belongs to another event loop")

    async def ask() -> None:
        ends = await asyncio.gather(*[asker.take() for _ in range(3)], return_exceptions=True)
        assert [type(end) for end in ends] == [RuntimeError] * 3

    asyncio.run(ask())
    asker.wire.fault = None
    # What was left there is not lost by that.
    assert first.run_until_complete(asyncio.wait_for(asyncio.gather(*left), 20)) == [0] * 4
    first.close()


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> Writes:
    wire = Writes()
    monkeypatch.setattr(aio_module, "AsyncWire", lambda client, timeout_s: wire)
    for module in (aio_module, dialog_module):
        monkeypatch.setattr(module, "monotonic", wire.store.monotonic)
    return wire


def test_a_limiter_coalesces_unless_told_otherwise(wire: Writes) -> None:
    async def run(coalesce: bool) -> list[str]:
        wire.writes.clear()
        async with AsyncRedisRateLimiter("9/second", wire, coalesce=coalesce) as limiter:
            answers = await asyncio.gather(
                *[limiter.allow(coalesce) for _ in range(8)],
                *[limiter.check(coalesce) for _ in range(2)],
            )
            assert answers[:8] == [True] * 8
            assert [decision.allowed for decision in answers[8:]] == [True, False]  # type: ignore[union-attr]
        [write] = wire.writes
        return [name for name, _, _ in write]

    assert asyncio.run(run(True)) == ["take_one", "take_some", "tell", "tell"]
    assert asyncio.run(run(False)) == ["take_one"] * 8 + ["tell"] * 2


@pytest.mark.parametrize("keys", ["aaaa", "abcd"])
def test_nobody_joins_what_was_left_in_a_loop_that_is_closed(wire: Writes, keys: str) -> None:
    limiter = AsyncRedisRateLimiter("9/second", wire)
    left: list[asyncio.Task[Any]] = []

    async def leave() -> None:
        left.extend(tasks_of(map(limiter.allow, keys)))

    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave())  # they ask in its last turn
    for task in left:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    wire._out.clear()

    async def ask() -> list[bool]:
        return await asyncio.wait_for(asyncio.gather(*map(limiter.allow, keys[::-1])), 20)

    assert asyncio.run(ask()) == [True] * 4


def test_a_limiter_with_a_wrong_coalesce() -> None:
    with pytest.raises(TypeError, match="coalesce must be a bool, not int"):
        AsyncRedisRateLimiter("9/second", "redis://localhost", coalesce=1)  # type: ignore[arg-type]


def test_a_merged_denial_is_kept_and_told(wire: Writes) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("3/second", wire)
        answers = await asyncio.gather(*[limiter.allow("k") for _ in range(8)])
        assert answers == [True] * 3 + [False] * 5
        assert not await limiter.allow("k")
        assert len(wire.writes) == 1
        assert limiter.stats()[:3] == (3, 6, 1)
        wire.store.now_s += 1
        assert await limiter.allow("k")

    asyncio.run(run())


def test_a_merged_call_that_fails_goes_to_the_policy_of_each(wire: Writes) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("3/second", wire)
        wire.fault = Unavailable("gone", outcome_unknown=True)
        answers = await asyncio.gather(*[limiter.allow("k") for _ in range(8)])
        assert answers == [True] * 3 + [False] * 5
        stats = limiter.stats()
        assert (stats.allowed, stats.denied, stats.degraded) == (3, 5, 8)
        assert stats.failures == stats.unknown == 8
        # The breaker is open: nobody is asked.
        wire.fault = None
        assert not await limiter.allow("k")
        assert wire.writes == []

    asyncio.run(run())


def test_who_waits_merges_with_those_who_do_not(wire: Writes) -> None:
    async def run() -> None:
        limiter = AsyncRedisRateLimiter("3/second", wire)
        answers = await asyncio.gather(
            limiter.allow("k"), limiter.acquire("k", timeout=0), limiter.allow("k"),
            limiter.allow("k"),
        )  # fmt: skip
        assert answers == [True, True, True, False]
        assert [[name for name, _, _ in write] for write in wire.writes] == [
            ["take_one", "take_some"]
        ]

    asyncio.run(run())
