"""nanolimit.compat.token_bucket beside token-bucket 0.4: each expectation is asked of both."""

from __future__ import annotations

import copy
import json
import os
import pickle
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any
from unittest import mock

import freezegun
import pytest
import token_bucket
import token_bucket.storage
from hypothesis import given
from hypothesis import strategies as st

from nanolimit import LimiterClosedError, ManualClock, NanolimitError, SharedTableError
from nanolimit.compat import token_bucket as compat

PEERS = [pytest.param(token_bucket, id="original"), pytest.param(compat, id="ours")]
both = pytest.mark.parametrize("peer", PEERS)


class Clock:
    """What both see as `time.monotonic` while it stands in their modules."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now
        self.asked = 0

    def monotonic(self) -> float:
        self.asked += 1
        return self.now

    def __enter__(self) -> Clock:
        fake = SimpleNamespace(monotonic=self.monotonic)
        self._patches = [
            mock.patch.object(module, "time", fake) for module in (token_bucket.storage, compat)
        ]
        for patch in self._patches:
            patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        for patch in self._patches:
            patch.stop()


@pytest.fixture
def clock() -> Iterator[Clock]:
    with Clock() as clock:
        yield clock


def make(peer: Any, rate: float, capacity: int) -> tuple[Any, Any]:
    storage = peer.MemoryStorage()
    return peer.Limiter(rate, capacity, storage), storage


def drain(limiter: Any, key: object = "key") -> int:
    """How many single tokens there are."""
    number = 0
    while limiter.consume(key):
        number += 1
    return number


# What both do


@both
def test_names(peer: Any) -> None:
    assert all(hasattr(peer, name) for name in ("Limiter", "MemoryStorage", "StorageBase"))
    assert peer.__version__ == "0.4.0"
    assert issubclass(peer.MemoryStorage, peer.StorageBase)


@both
def test_a_bucket_is_full_at_first(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 2, 10)
    assert storage.get_token_count("key") == 0
    assert drain(limiter) == 10
    assert storage.get_token_count("key") == 0


@both
def test_it_fills_with_time(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 2, 10)
    drain(limiter)
    clock.now += 0.25
    assert not limiter.consume("key")
    assert storage.get_token_count("key") == 0.5
    clock.now += 0.25
    assert limiter.consume("key")
    assert not limiter.consume("key")
    clock.now += 2
    assert drain(limiter) == 4
    clock.now += 100
    assert drain(limiter) == 10


@both
def test_the_count_is_that_of_the_last_call(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 2, 10)
    assert limiter.consume("key", 4)
    assert storage.get_token_count("key") == 6
    clock.now += 1
    assert storage.get_token_count("key") == 6
    storage.replenish("key", 2, 10)
    assert storage.get_token_count("key") == 8
    for _ in range(2):
        clock.now += 3
        storage.replenish("key", 2, 10)
        assert storage.get_token_count("key") == 10


@both
def test_several_tokens_are_all_or_none(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 1, 10)
    assert limiter.consume("key", 7)
    assert not limiter.consume("key", 4)
    assert storage.get_token_count("key") == 3
    assert limiter.consume("key", num_tokens=3)
    assert not limiter.consume("key", num_tokens=1)


@both
def test_more_than_the_capacity_there_never_is(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 1, 10)
    assert limiter.consume("key", 11) is False
    assert limiter.consume("key", 10**30) is False
    assert storage.get_token_count("key") == 10
    assert limiter.consume("key", 10) is True


@both
def test_fractions_of_tokens(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 0.5, 4)
    assert limiter.consume("key", 2.5)
    assert storage.get_token_count("key") == 1.5
    clock.now += 1
    assert limiter.consume("key", 2)
    assert not limiter.consume("key")


@both
def test_keys(peer: Any, clock: Clock) -> None:
    limiter, _ = make(peer, 1, 2)
    keys: list[Any] = ["key", b"key", uuid.uuid4().bytes, "whiz:bang", "\u00fc", ("a", 1), 7, 0.5]
    for key in keys:
        assert [limiter.consume(key) for _ in range(3)] == [True, True, False]


@both
def test_limiters_may_share_a_storage(peer: Any, clock: Clock) -> None:
    """Then they share the buckets, whatever their rates."""
    storage = peer.MemoryStorage()
    slow, fast = peer.Limiter(1, 4, storage), peer.Limiter(10, 8, storage)
    assert slow.consume("key", 4)
    assert not fast.consume("key")
    clock.now += 1
    assert fast.consume("key", 8)
    clock.now += 1
    assert slow.consume("key")
    assert not fast.consume("key")


@both
def test_a_clock_that_goes_back(peer: Any, clock: Clock) -> None:
    limiter, storage = make(peer, 1, 10)
    assert limiter.consume("key", 10)
    clock.now -= 50
    assert not limiter.consume("key")
    assert storage.get_token_count("key") == 0
    clock.now += 51
    assert drain(limiter) == 1


@both
def test_the_clock_is_asked_once(peer: Any, clock: Clock) -> None:
    limiter, _ = make(peer, 1, 10)
    assert clock.asked == 0
    for asked in (1, 2):
        limiter.consume("key")
        assert clock.asked == asked


@both
@pytest.mark.parametrize(
    ("rate", "capacity", "error", "message"),
    [
        ("x", 1, TypeError, "rate must be an int or float"),
        (None, 1, TypeError, "rate must be an int or float"),
        ("x", -1, TypeError, "rate must be an int or float"),
        (0, 1, ValueError, "rate must be > 0"),
        (-2.5, 1, ValueError, "rate must be > 0"),
        (0, 0, ValueError, "rate must be > 0"),
        (-1, "y", ValueError, "rate must be > 0"),
        (1, "y", TypeError, "capacity must be an int"),
        (1, None, TypeError, "capacity must be an int"),
        (1, 1.0, TypeError, "capacity must be an int"),
        (1, 0, ValueError, "capacity must be >= 1"),
        (1, -2, ValueError, "capacity must be >= 1"),
    ],
)
def test_bad_numbers(
    peer: Any, rate: Any, capacity: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as caught:
        peer.Limiter(rate, capacity, peer.MemoryStorage())
    assert str(caught.value) == message


@both
@pytest.mark.parametrize(("rate", "capacity"), [(True, True), (1e-9, 1), (10**30, 10**30)])
def test_numbers_that_are_none_the_less(
    peer: Any, clock: Clock, rate: float, capacity: int
) -> None:
    limiter, _ = make(peer, rate, capacity)
    assert limiter.consume("key", capacity)
    assert not limiter.consume("key")


@both
def test_a_storage_that_is_none(peer: Any) -> None:
    class Alike:
        get_token_count = replenish = consume = None

    for storage in (Alike(), None, peer.MemoryStorage):
        with pytest.raises(TypeError) as caught:
            peer.Limiter(1, 1, storage)
        assert str(caught.value) == "storage must be a subclass of StorageBase"


@both
@pytest.mark.parametrize(
    ("key", "number", "error", "message"),
    [
        (None, 1, TypeError, "key may not be None"),
        (None, -1, TypeError, "key may not be None"),
        ("", 1, ValueError, "key must not be a non-empty string or bytestring"),
        (b"", 0, ValueError, "key must not be a non-empty string or bytestring"),
        (0, 1, ValueError, "key must not be a non-empty string or bytestring"),
        ("x", None, TypeError, "num_tokens may not be None"),
        (1, None, TypeError, "num_tokens may not be None"),
        ("x", 0, ValueError, "num_tokens must be >= 1"),
        ("x", -2, ValueError, "num_tokens must be >= 1"),
        ("x", 0.5, ValueError, "num_tokens must be >= 1"),
    ],
)
def test_bad_calls(peer: Any, key: Any, number: Any, error: type[Exception], message: str) -> None:
    storages = [peer.MemoryStorage()]
    if peer is compat:
        storages.append(compat.TableStorage())
    for storage in storages:
        with pytest.raises(error) as caught:
            peer.Limiter(1, 1, storage).consume(key, number)
        assert str(caught.value) == message


@both
def test_keys_that_no_dict_takes(peer: Any) -> None:
    limiter, storage = make(peer, 1, 1)
    with pytest.raises(TypeError, match="unhashable"):
        limiter.consume(["x"])
    with pytest.raises(TypeError, match="unhashable"):
        storage.get_token_count(["x"])
    with pytest.raises(TypeError):
        limiter.consume("x", "1")


@both
def test_a_bucket_that_there_is_not(peer: Any) -> None:
    storage = peer.MemoryStorage()
    assert storage.get_token_count("key") == 0
    with pytest.raises(KeyError):
        storage.consume("key", 1)


@both
def test_a_limiter_has_no_other_attributes(peer: Any) -> None:
    limiter, _ = make(peer, 1, 1)
    with pytest.raises(AttributeError):
        limiter.other = 1


@both
def test_a_storage_of_ones_own(peer: Any) -> None:
    calls: list[tuple[object, ...]] = []

    class Storage(peer.StorageBase):  # type: ignore[misc,name-defined]
        def get_token_count(self, key: Any) -> float:
            return 3

        def replenish(self, key: Any, rate: float, capacity: int) -> None:
            calls.append(("replenish", key, rate, capacity))

        def consume(self, key: Any, num_tokens: int) -> bool:
            calls.append(("consume", key, num_tokens))
            return num_tokens < 3

    limiter = peer.Limiter(1.5, 10, Storage())
    assert [limiter.consume("a", 2), limiter.consume(b"b", num_tokens=3)] == [True, False]
    assert calls == [
        ("replenish", "a", 1.5, 10),
        ("consume", "a", 2),
        ("replenish", b"b", 1.5, 10),
        ("consume", b"b", 3),
    ]


@both
def test_a_storage_must_have_all_methods(peer: Any) -> None:
    class Storage(peer.StorageBase):  # type: ignore[misc,name-defined]
        def get_token_count(self, key: Any) -> float:
            return 3

    with pytest.raises(TypeError, match="abstract"):
        Storage()


@both
def test_a_storage_may_be_watched_and_replaced(peer: Any, clock: Clock) -> None:
    class Watched(peer.MemoryStorage):  # type: ignore[misc,name-defined]
        seen = 0

        def consume(self, key: Any, num_tokens: int) -> bool:
            self.seen += 1
            return bool(super().consume(key, num_tokens))

    storage = Watched()
    limiter = peer.Limiter(1, 5, storage)
    assert drain(limiter) == 5
    assert storage.seen == 6
    limiter, storage = make(peer, 1, 5)
    with mock.patch.object(storage, "consume", return_value=False):
        assert not limiter.consume("key")
    assert storage.get_token_count("key") == 5
    with mock.patch.object(peer.MemoryStorage, "replenish"):
        assert limiter.consume("key")
    assert limiter.consume("key")


@both
@pytest.mark.parametrize(
    "again", [copy.copy, copy.deepcopy, lambda storage: pickle.loads(pickle.dumps(storage))]
)
def test_a_storage_is_copied_with_its_buckets(
    peer: Any, clock: Clock, again: Callable[[Any], Any]
) -> None:
    limiter, storage = make(peer, 1, 5)
    limiter.consume("key", 3)
    other = again(storage)
    assert other.get_token_count("key") == 2
    assert drain(peer.Limiter(1, 5, other)) == 2


@both
def test_freezegun(peer: Any) -> None:
    with freezegun.freeze_time("2030-01-01 12:00:00") as frozen:
        limiter, _ = make(peer, 1, 60)
        assert drain(limiter) == 60
        frozen.tick(2.5)
        assert drain(limiter) == 2
        frozen.tick(0.5)
        assert drain(limiter) == 1
        frozen.tick(3_600)
        assert drain(limiter) == 60


@both
def test_real_time(peer: Any) -> None:
    limiter, storage = make(peer, 50, 5)
    before = time.monotonic()
    number = drain(limiter)
    while number < 15:
        number += limiter.consume("key")
        time.sleep(0.001)
    assert time.monotonic() - before >= 10 / 50 - 0.001
    assert storage.get_token_count("key") < 5


# Side by side

number_of_tokens = st.integers(1, 12) | st.floats(1, 12)


@given(
    rate=st.integers(1, 20) | st.floats(1e-3, 1e3),
    capacity=st.integers(1, 10),
    start=st.floats(-1e6, 1e6),
    steps=st.lists(
        st.tuples(
            st.floats(-0.5, 3) | st.sampled_from([0, 0.25, 1]),
            st.sampled_from(["consume", "consume", "consume", "replenish"]),
            st.sampled_from(["a", b"a", "b"]),
            number_of_tokens,
        ),
        max_size=40,
    ),
)
def test_the_same_decisions_and_counts(
    rate: float, capacity: int, start: float, steps: list[tuple[float, str, Any, Any]]
) -> None:
    with Clock(start) as clock:
        made = [make(peer, rate, capacity) for peer in (token_bucket, compat)]
        for step, what, key, number in steps:
            clock.now += step
            seen: list[tuple[object, ...]] = []
            for limiter, storage in made:
                if what == "consume":
                    answer = limiter.consume(key, number)
                else:
                    answer = storage.replenish(key, rate, capacity)
                seen.append((answer, *(storage.get_token_count(each) for each in ("a", b"a", "b"))))
            assert seen[0] == seen[1]


# What ours does besides


def test_a_rate_that_is_no_number() -> None:
    with pytest.raises(ValueError, match="rate must be > 0"):
        make(compat, float("nan"), 1)


def test_a_copy_has_buckets_of_its_own(clock: Clock) -> None:
    limiter, storage = make(compat, 1, 5)
    limiter.consume("key", 3)
    other = copy.copy(storage)
    assert drain(compat.Limiter(1, 5, other)) == 2
    assert drain(limiter) == 2


def in_threads(number: int, work: Callable[[], None]) -> None:
    threads = [threading.Thread(target=work) for _ in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.usefixtures("restless")
@pytest.mark.parametrize("storage_class", [compat.MemoryStorage, compat.TableStorage])
def test_threads_take_no_token_twice(storage_class: Any) -> None:
    limiter = compat.Limiter(1e-5, 400, storage_class())
    taken: list[int] = []

    def work() -> None:
        for _ in range(200):
            if limiter.consume("key"):
                taken.append(1)

    in_threads(8, work)
    assert len(taken) == 400


class Pause(float):
    """A number of tokens; whoever compares or adds it lets another thread go on meanwhile."""

    armed: Callable[[], None] | None = None

    def _pause(self) -> None:
        armed, Pause.armed = Pause.armed, None
        if armed is not None:
            armed()

    def __lt__(self, other: Any) -> bool:
        answer = float(self) < other
        self._pause()
        return answer

    def __sub__(self, other: Any) -> Pause:
        return Pause(float(self) - other)


@both
def test_the_race_that_the_original_names(peer: Any, clock: Clock) -> None:
    """Two take the last token at once: one looks, the other takes, the first takes."""
    _, storage = make(peer, 1, 1)
    storage.replenish("key", 1, 1)
    storage._buckets["key"][0] = Pause(1)
    other_answers: list[bool] = []
    other = threading.Thread(target=lambda: other_answers.append(storage.consume("key", 1)))

    def meanwhile() -> None:
        other.start()
        other.join(0.2)  # ours waits for the lock

    Pause.armed = meanwhile
    answers = [storage.consume("key", 1)]
    other.join()
    answers += other_answers
    if peer is compat:
        assert sorted(answers) == [False, True]
        assert storage.get_token_count("key") == 0
    else:
        assert answers == [True, True], "the original has mended its race: say so in the docs"
        assert storage.get_token_count("key") == -1


def test_a_bucket_is_never_refilled_from_an_older_count() -> None:
    """The clock is read under the lock: nobody comes between with a later time."""
    order: list[str] = []
    storage = compat.MemoryStorage()

    def monotonic() -> float:
        if order == []:
            order.append("read")
            other.start()
            other.join(0.1)
            order.append("goes on")
        return 1_000.0

    def replenish() -> None:
        storage.replenish("key", 1, 1)
        order.append("other")

    other = threading.Thread(target=replenish)
    with mock.patch.object(compat, "time", SimpleNamespace(monotonic=monotonic)):
        storage.replenish("key", 1, 1)
        other.join()
    assert order == ["read", "goes on", "other"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_finds_the_lock_open() -> None:
    limiter, storage = make(compat, 1e-6, 3)
    limiter.consume("key")
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with storage._lock:
            held.set()
            leave.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(10)
        child = os.fork()
        if not child:
            code = 1
            try:
                code = drain(limiter)
            finally:
                os._exit(code)
        deadline = time.monotonic() + 20
        ended = status = 0
        while not ended and time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            time.sleep(0.005)
        if not ended:
            os.kill(child, 9)
            os.waitpid(child, 0)
        assert ended, "the child waits for a thread that it has not"
        assert os.waitstatus_to_exitcode(status) == 2
    finally:
        leave.set()
        thread.join()
    assert drain(limiter) == 2


# TableStorage


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


def test_a_table_is_a_bucket(manual: ManualClock) -> None:
    storage = compat.TableStorage(clock=manual)
    assert isinstance(storage, compat.StorageBase)
    assert storage.limiter is None
    limiter = compat.Limiter(2, 10, storage)
    assert drain(limiter) == 10
    assert storage.get_token_count("key") == 0
    manual.advance(0.25)
    assert not limiter.consume("key")
    assert storage.get_token_count("key") == 0.5
    manual.advance(0.25)
    assert limiter.consume("key")
    manual.advance(2)
    assert storage.get_token_count("key") == 4
    assert drain(limiter) == 4
    manual.advance(100)
    assert storage.get_token_count("key") == 10
    assert limiter.consume("key", 7)
    assert not limiter.consume("key", 4)
    assert not limiter.consume("key", 11)
    assert not limiter.consume("key", 10**30)
    assert limiter.consume("key", 3)
    assert limiter.consume(b"key"), "another key"
    assert storage.limiter is not None
    assert storage.limiter.reset("key")
    assert drain(limiter) == 10


@given(
    rate=st.sampled_from([0.5, 1, 2, 4, 8]),
    capacity=st.sampled_from([1, 2, 4, 8]),
    steps=st.lists(
        st.tuples(st.integers(0, 16).map(lambda number: number / 8), st.integers(1, 9)), max_size=40
    ),
)
def test_a_table_decides_as_the_original(
    rate: float, capacity: int, steps: list[tuple[float, int]]
) -> None:
    """In numbers that floats hold exactly, for there is nothing to be rounded then."""
    manual = ManualClock(1_000)
    ours = compat.TableStorage(clock=manual, max_keys=1)
    with Clock() as clock:
        theirs = token_bucket.MemoryStorage()
        one, two = (
            token_bucket.Limiter(rate, capacity, theirs),
            compat.Limiter(rate, capacity, ours),
        )
        for step, number in steps:
            clock.now += step
            manual.advance(step)
            assert one.consume("key", number) == two.consume("key", number)
            assert ours.get_token_count("key") == pytest.approx(theirs.get_token_count("key"))


def test_the_methods_of_a_table() -> None:
    storage = compat.TableStorage()
    assert storage.get_token_count("key") == 0
    with pytest.raises(NanolimitError, match="has no rate yet: make a Limiter with it"):
        storage.consume("key", 1)
    storage.replenish("key", 1e-6, 5)
    assert storage.get_token_count("key") == 5
    assert storage.consume("key", 2)
    assert storage.get_token_count("key") == pytest.approx(3, abs=1e-3)
    storage.close()
    with pytest.raises(LimiterClosedError):
        storage.consume("key", 1)


def test_a_table_that_is_inherited_from() -> None:
    class Watched(compat.TableStorage):
        seen = replenished = 0

        def replenish(self, key: Any, rate: float, capacity: int) -> None:
            self.replenished += 1
            super().replenish(key, rate, capacity)

        def consume(self, key: Any, num_tokens: int) -> bool:
            self.seen += 1
            return super().consume(key, num_tokens)

    storage = Watched()
    assert drain(compat.Limiter(1e-6, 5, storage)) == 5
    assert (storage.seen, storage.replenished) == (6, 6)


def test_a_table_has_one_rate() -> None:
    storage = compat.TableStorage()
    one, two = (compat.Limiter(1e-6, 5, storage) for _ in range(2))
    assert one.consume("key", 3)
    assert drain(two) == 2
    with pytest.raises(ValueError, match=r"has buckets with rate=1e-06 and capacity=5, so another"):
        compat.Limiter(1e-6, 6, storage)
    with pytest.raises(ValueError, match=r"is needed for rate=2 and capacity=5"):
        storage.replenish("key", 2, 5)


@pytest.mark.parametrize(
    ("rate", "capacity", "message"),
    [
        (1, 2**25, "capacity must be <= 16777216 with a TableStorage, not 33554432"),
        (1e9, 10, "capacity / rate, the time in which a bucket fills, must be from 1e-6"),
        (1e-9, 10, "capacity / rate, the time in which a bucket fills, must be from 1e-6"),
        (float("inf"), 10, "capacity / rate, the time in which a bucket fills, must be from 1e-6"),
        (10**400, 10, "capacity / rate, the time in which a bucket fills, must be from 1e-6"),
        (5e-324, 10, "capacity / rate, the time in which a bucket fills, must be from 1e-6"),
    ],
)
def test_what_a_table_can_not_hold(rate: float, capacity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compat.Limiter(rate, capacity, compat.TableStorage())


def test_bad_arguments_of_a_table() -> None:
    limiter = compat.Limiter(1, 5, compat.TableStorage())
    with pytest.raises(TypeError, match="num_tokens must be an int with a TableStorage, not float"):
        limiter.consume("key", 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="float"):
        limiter.consume(1.5)  # type: ignore[arg-type]
    for arguments in ({"max_keys": 0}, {"on_full": "no"}, {"clock": 3}, {"on_mismatch": "adopt"}):
        with pytest.raises((TypeError, ValueError), match=next(iter(arguments))):
            compat.Limiter(1, 5, compat.TableStorage(**arguments))  # type: ignore[arg-type]


def test_a_full_table_takes_the_place_of_full_buckets(manual: ManualClock) -> None:
    storage = compat.TableStorage(clock=manual, max_keys=2, on_full="deny")
    limiter = compat.Limiter(1, 5, storage)
    assert [limiter.consume(key) for key in ("a", "b", "c")] == [True, True, False]
    manual.advance(1)
    assert limiter.consume("c")


@pytest.mark.usefixtures("tables")
def test_a_shared_table() -> None:
    one, two = (compat.Limiter(1e-6, 5, compat.TableStorage("api")) for _ in range(2))
    assert one.consume("key", 3)
    assert drain(two) == 2
    assert not one.consume("key")
    with pytest.raises(SharedTableError):
        compat.Limiter(1e-6, 6, compat.TableStorage("api"))
    storage = compat.TableStorage("api", on_mismatch="adopt")
    adopted = compat.Limiter(1, 50, storage)
    assert adopted.consume("other", 6) is False
    assert drain(adopted, "other") == 5
    storage.close()


WORKER = """
import json, sys
from nanolimit.compat.token_bucket import Limiter, TableStorage
limiter = Limiter(1e-6, 100, TableStorage("api"))
sys.stdin.readline()
print(json.dumps(sum(limiter.consume("key") for _ in range(80))))
"""


@pytest.mark.usefixtures("tables")
def test_processes_share_a_table() -> None:
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    taken = [json.loads(worker.communicate(timeout=60)[0]) for worker in workers]
    assert sum(taken) == 100
