"""@limiter.limit: functions, methods, coroutine functions; denied, answered, waited for."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from nanolimit import Decision, LimiterClosedError, ManualClock, RateLimiter, RateLimitExceeded
from waiters import Waiting, waiting


@pytest.fixture
def manual() -> ManualClock:
    return ManualClock(1_000)


@pytest.fixture
def limiter(manual: ManualClock) -> RateLimiter:
    return RateLimiter(2, per=60, clock=manual)


def test_bare(limiter: RateLimiter, manual: ManualClock) -> None:
    @limiter.limit
    def add(one: int, two: int = 2) -> int:
        """Add."""
        return one + two

    assert (add(1), add(1, two=3)) == (3, 4)
    with pytest.raises(RateLimitExceeded) as caught:
        add(1)
    name = f"{__name__}.test_bare.<locals>.add"
    assert caught.value.key == name
    assert caught.value.decision.retry_after == 60.0
    assert not limiter.allow(name)
    manual.advance(60)
    assert add(1) == 3
    assert (add.__name__, add.__doc__) == ("add", "Add.")
    assert list(inspect.signature(add).parameters) == ["one", "two"]
    assert inspect.unwrap(add) is not add


def test_each_function_has_a_limit_of_its_own(limiter: RateLimiter) -> None:
    @limiter.limit()
    def one() -> None: ...

    @limiter.limit()
    def two() -> None: ...

    for _ in range(2):
        one()
        two()
    for function in (one, two):
        with pytest.raises(RateLimitExceeded):
            function()


def test_a_fixed_key_is_shared(limiter: RateLimiter) -> None:
    both = limiter.limit(key=("api", 7))

    @both
    def one() -> int:
        return 1

    @both
    def two() -> int:
        return 2

    assert one() + two() == 3
    assert not limiter.peek(("api", 7))
    with pytest.raises(RateLimitExceeded) as caught:
        one()
    assert caught.value.key == ("api", 7)


def test_key_and_cost_of_the_call(limiter: RateLimiter) -> None:
    calls: list[tuple[str, str]] = []

    @limiter.limit(key=lambda user, text="": user, cost=lambda user, text="": len(text))
    def send(user: str, text: str = "") -> None:
        calls.append((user, text))

    send("me", "ab")
    send("you", text="a")
    with pytest.raises(RateLimitExceeded):
        send("me", "c")
    send("me")
    with pytest.raises(ValueError, match="could never pass"):
        send("new", "abc")
    assert calls == [("me", "ab"), ("you", "a"), ("me", "")]


def test_methods(limiter: RateLimiter) -> None:
    class Client:
        def __init__(self, name: str) -> None:
            self.name = name

        @limiter.limit(key=lambda self: self.name)
        def fetch(self) -> str:
            return self.name

        @classmethod
        @limiter.limit
        def make(cls) -> str:
            return cls.__name__

        @staticmethod
        @limiter.limit(key="static")
        def tell() -> int:
            return 7

    one, two = Client("one"), Client("two")
    assert [one.fetch(), one.fetch(), two.fetch()] == ["one", "one", "two"]
    with pytest.raises(RateLimitExceeded):
        one.fetch()
    assert (Client.make(), Client.tell()) == ("Client", 7)
    assert limiter.peek(f"{__name__}.test_methods.<locals>.Client.make").remaining == 1
    assert limiter.peek("static").remaining == 1


def test_on_denied(limiter: RateLimiter) -> None:
    def answer(decision: Decision, *args: object, **kwargs: object) -> tuple[object, ...]:
        assert not decision
        return decision.retry_after, args, kwargs

    @limiter.limit(cost=2, on_denied=answer)
    def call(*args: object, **kwargs: object) -> str:
        return "called"

    assert call(1, a=2) == "called"
    assert call(1, a=2) == (60.0, (1,), {"a": 2})


def test_coroutine_functions(limiter: RateLimiter) -> None:
    @limiter.limit
    async def call(value: int) -> int:
        await asyncio.sleep(0)
        return value

    async def on_denied(decision: Decision, value: int) -> str:
        await asyncio.sleep(0)
        return f"no {value}"

    @limiter.limit(cost=2, on_denied=on_denied)
    async def answered(value: int) -> int:
        return value

    @limiter.limit(cost=2, on_denied=lambda decision, value: "plain")
    async def plainly(value: int) -> int:
        return value

    assert inspect.iscoroutinefunction(call)
    assert inspect.iscoroutinefunction(answered)

    async def main() -> None:
        late = call(1)
        assert limiter.peek(f"{call.__module__}.{call.__qualname__}").remaining == 2
        assert await late == 1, "counted when it runs, not when it is made"
        assert await call(2) == 2
        with pytest.raises(RateLimitExceeded):
            await call(3)
        assert (await answered(1), await answered(2)) == (1, "no 2")
        assert (await plainly(1), await plainly(2)) == (1, "plain")

    asyncio.run(main())


def test_wait(limiter: RateLimiter, manual: ManualClock) -> None:
    @limiter.limit(key="user", cost=2, wait=True)
    def call() -> int:
        return 7

    assert call() == 7
    waiter = Waiting(limiter, call)
    assert waiting(limiter) == 1
    manual.advance(60)
    assert waiter.result() == 7


def test_wait_with_a_time_out(limiter: RateLimiter, manual: ManualClock) -> None:
    hasty = limiter.limit(key="user", cost=2, wait=True, timeout=10)
    answered = limiter.limit(
        key="user", cost=2, wait=True, timeout=0, on_denied=lambda decision: "no"
    )

    def call() -> str:
        return "yes"

    assert hasty(call)() == "yes"
    assert answered(call)() == "no"
    waiter = Waiting(limiter, hasty(call))
    manual.advance(10)
    with pytest.raises(RateLimitExceeded) as caught:
        waiter.result()
    assert (caught.value.key, caught.value.retry_after) == ("user", 50.0)


def test_wait_in_tasks(limiter: RateLimiter, manual: ManualClock) -> None:
    @limiter.limit(key="user", cost=2, wait=True, timeout=100)
    async def call(value: int) -> int:
        return value

    async def main() -> None:
        assert await call(1) == 1
        crew = [asyncio.create_task(call(value)) for value in (2, 3)]
        while waiting(limiter) < 2:
            await asyncio.sleep(0)
        manual.advance(60)
        assert await crew[0] == 2
        manual.advance(40)
        with pytest.raises(RateLimitExceeded):
            await crew[1]

    asyncio.run(main())


def test_callables_that_are_no_functions(limiter: RateLimiter) -> None:
    def add(one: int, two: int) -> int:
        return one + two

    with pytest.raises(TypeError, match="a partial has no name to be its key: give key="):
        limiter.limit(functools.partial(add, 1))
    assert limiter.limit(key="add")(functools.partial(add, 1))(2) == 3

    class Later:
        async def __call__(self) -> int:
            return 7

    later = limiter.limit(key="later", wait=True)(Later())
    assert inspect.iscoroutinefunction(later)
    assert asyncio.run(later()) == 7


def numbers() -> Iterator[int]:
    yield 1


async def numbers_async() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (numbers, "no generator, as numbers is: .* Use limiter.slot"),
        (numbers_async, "no generator, as numbers_async is"),
        (classmethod(numbers), "below @classmethod"),
        (staticmethod(numbers), "below @staticmethod"),
        (int, "decorates a function, not a class"),
        ("user", "decorates a function, not str"),
    ],
)
def test_what_cannot_be_decorated(function: Any, message: str, limiter: RateLimiter) -> None:
    for decorator in (limiter.limit, limiter.limit(key="user")):
        with pytest.raises(TypeError, match=message):
            decorator(function)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": 1.5}, TypeError, "float"),
        ({"cost": 3}, ValueError, "could never pass"),
        ({"cost": "1"}, TypeError, "cost must be an int"),
        ({"on_denied": 5}, TypeError, "on_denied must be a callable .* not int"),
        ({"wait": 1}, TypeError, "wait must be True or False, not int"),
        ({"timeout": 1}, TypeError, "timeout goes with wait=True"),
        ({"wait": True, "timeout": -1}, ValueError, "timeout must be >= 0 seconds"),
        ({"wait": True, "timeout": "1"}, TypeError, "timeout must be seconds"),
        ({"limit": 5}, TypeError, "limit"),
    ],
)
def test_bad_arguments_show_where_they_stand(
    arguments: Any, error: type[Exception], message: str, limiter: RateLimiter
) -> None:
    with pytest.raises(error, match=message):
        limiter.limit(**arguments)
    assert limiter.stats().allowed == limiter.stats().denied == 0


def test_a_closed_limiter(limiter: RateLimiter) -> None:
    @limiter.limit
    def call() -> None: ...

    limiter.close()
    with pytest.raises(LimiterClosedError):
        call()
    with pytest.raises(LimiterClosedError):
        limiter.limit(key="user")
