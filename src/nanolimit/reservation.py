"""Units taken before it is known what a request costs, and settled when it is.

An answer of a language model costs what it turned out to cost. `RateLimiter.reserve` counts an
estimate; `Reservation.commit` gives back what was too much, or takes what was too little. What is
given back is exactly what was stamped: those units at that time, as long as they still count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolimit.clock import shown
from nanolimit.errors import RateLimitExceeded, ReservationClosedError
from nanolimit.quota import whole_number

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from nanolimit._core import Bundle, Decision, Limiter
    from nanolimit.limiter import Key

__all__ = ["Attempt", "Reservation"]


class Reservation:
    """Units that were counted and wait to be settled: `RateLimiter.reserve` makes them.

    ```python
    with tokens.reserve(user, cost=800) as reservation:
        if not reservation.ok:
            ...  # come again in reservation.decision.retry_after seconds
        answer = model.complete(prompt)
        reservation.commit(answer.tokens)
    ```

    As a context manager it cancels if the block raises; if it ends without `commit`, the units stay
    counted as they were reserved. So they do if a reservation is simply forgotten. Thread-safe: of
    two threads that settle it, one does.
    """

    __slots__ = ("_end", "_engine", "_token", "cost", "debt", "decision", "key")

    key: Key
    cost: int  # as reserved
    decision: Decision
    debt: int  # after commit(): units that the window did not allow

    def __init__(self, engine: Limiter | Bundle, key: Key, cost: int) -> None:
        self.decision, self._token = engine.count(key, cost)
        self._engine = engine
        self.key = key
        self.cost = cost
        self.debt = 0
        self._end: dict[str, list[str]] = {}  # "how": who put that there settles

    @property
    def ok(self) -> bool:
        """Whether the units were there to be reserved."""
        return self.decision.allowed

    def commit(self, actual_cost: int | None = None) -> int:
        """Settle at what it really cost.

        Args:
            actual_cost: Units, from 0 on; it may be above the limit. As reserved when left out. If
                it is less, the rest is given back; if it is more, as much of it is taken as fits.

        Returns:
            The debt: units that did not fit, and are counted nowhere. 0 if all is counted.

        Raises:
            TypeError: `actual_cost` is no int.
            ValueError: It is negative. The reservation stays open.
            ReservationClosedError: It was committed or cancelled before, or never was `ok`.
        """
        actual = self.cost if actual_cost is None else whole_number("actual_cost", actual_cost)
        if actual < 0:
            raise ValueError(f"actual_cost must be >= 0, got {shown(actual)}")
        if not self._settle("commit"):
            why = "it was settled before" if self.ok else "it was denied, so nothing is reserved"
            raise ReservationClosedError(f"can't commit this reservation: {why}")
        token = self._token
        if actual < self.cost and token is not None:
            self._engine.give_back(self.key, self.cost - actual, token)
        self.debt = self._take(actual - self.cost)
        return self.debt

    def cancel(self) -> int:
        """Give all of it back.

        Returns:
            Units that still counted. 0 for one that was cancelled before, or never was `ok`.

        Raises:
            ReservationClosedError: It was committed before.
        """
        if not self.ok:
            return 0
        if not self._settle("cancel"):
            if self._end["how"] == ["cancel"]:
                return 0
            raise ReservationClosedError("can't cancel this reservation: it was settled before")
        if self._token is None:
            return 0
        return self._engine.give_back(self.key, self.cost, self._token)

    def _settle(self, how: str) -> bool:
        """Whether it is this call that settles: one step, with and without the GIL."""
        mine = [how]
        return self.ok and self._end.setdefault("how", mine) is mine

    def _take(self, wanted: int) -> int:
        """Count as much of it as fits; return the rest."""
        while wanted > 0:
            fitting = min(wanted, self._engine.peek(self.key, 0).remaining)
            if not fitting:
                break
            if self._engine.allow(self.key, fitting):
                wanted -= fitting
        return max(wanted, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.ok and not self._end:
            if exc_type is None:
                self.commit()
            else:
                self.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)

    def __repr__(self) -> str:
        state = "denied" if not self.ok else "closed" if self._end else "open"
        return f"<Reservation of {self.cost}, {state}>"


class Attempt:
    """A try that counts unless it succeeds: `RateLimiter.attempt` makes them.

    ```python
    with logins.attempt(account) as attempt:  # RateLimitExceeded: too many failures
        if password_is_right():
            attempt.success()
    ```

    It is counted at the entry, so that a hundred tries at the same time are a hundred, and given
    back by `success`. If the block raises, or ends without `success`, it stays counted.
    """

    __slots__ = ("_engine", "_reservation", "cost", "key")

    key: Key
    cost: int

    def __init__(self, engine: Limiter | Bundle, key: Key, cost: int) -> None:
        self._engine = engine
        self.key = key
        self.cost = cost
        self._reservation: Reservation | None = None

    @property
    def decision(self) -> Decision:
        """The decision at the entry.

        Raises:
            ReservationClosedError: It was not entered yet.
        """
        if self._reservation is None:
            raise ReservationClosedError("this attempt was not entered: use it in a with block")
        return self._reservation.decision

    def success(self) -> int:
        """Give the try back: it does not count.

        Returns:
            Units that still counted; 0 if it was called before.

        Raises:
            ReservationClosedError: It was not entered, or the block has ended.
        """
        if self._reservation is None:
            raise ReservationClosedError("this attempt is not under way: use it in a with block")
        return self._reservation.cancel()

    def __enter__(self) -> Self:
        reservation = Reservation(self._engine, self.key, self.cost)
        if not reservation.ok:
            raise RateLimitExceeded(reservation.decision, self.key)
        self._reservation = reservation
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._reservation = None

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.__exit__(exc_type, exc, traceback)
