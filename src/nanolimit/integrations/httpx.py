"""httpx: transports that pace what a client sends, and obey what servers answer.

    client = httpx.Client(transport=RateLimitTransport("10/second"))

It needs httpx >= 0.27: ``pip install nanolimit[httpx]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolimit.errors import RateLimitExceeded
from nanolimit.integrations.advice import NAMES
from nanolimit.integrations.pace import IDEMPOTENT, Pacer, origin
from nanolimit.tasks import waited
from nanolimit.waiting import wait

try:
    import httpx
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.httpx needs httpx >= 0.27: pip install 'nanolimit[httpx]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta
    from types import TracebackType

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota
    from nanolimit.remote import AwaitedLimiter, BlockingLimiter

__all__ = [
    "IDEMPOTENT",
    "AsyncRateLimitTransport",
    "RateLimitTimeout",
    "RateLimitTransport",
    "by_host",
]


# What is read of an answer. (httpx's own look-up goes through all fields for each name.)
_RAW_NAMES = {name.encode(): name for name in NAMES}


def by_host(request: httpx.Request) -> str:
    """Return the origin that a request goes to, as its key: ``"https://api.example.org"``.

    Scheme, host and port. `nanolimit.integrations.requests` has the same keys.
    """
    url = request.url
    return origin(url.scheme, url.raw_host.decode("ascii"), url.port)


class RateLimitTimeout(httpx.PoolTimeout, RateLimitExceeded):
    """A request was not sent, because its turn would come too late.

    It is httpx's `PoolTimeout`, for the request waited for leave to go out and no byte of it did,
    and nanolimit's `RateLimitExceeded`, with `decision`, `key` and `retry_after`.
    """

    def __init__(
        self, message: str, decision: Decision, key: object, request: httpx.Request | None = None
    ) -> None:
        httpx.PoolTimeout.__init__(self, message, request=request)
        self.args = (message, decision, key)
        self.decision = decision
        self.key = key

    def __str__(self) -> str:
        return str(self.args[0])


class RateLimitTransport(httpx.BaseTransport):
    """A transport for `httpx.Client` that lets requests pass in their turn.

    ```python
    client = httpx.Client(transport=RateLimitTransport("10/second"))
    ```

    A request waits, first come, first served, until the limit of its key has room, and is then sent
    by the transport within. If an answer says that the server wants no more for a while, nobody
    sends to that key until it is over: no thread or task, and no other process if the limiter's
    table is shared. Redirects and authentication are requests of their own.

    Args:
        limiter: A `RateLimiter`; or a quota, ``"10/second"`` or a `Quota`; or None to do only what
            servers say; or a `RedisRateLimiter`. The turns of that hold for all machines, and what
            servers say for this object only.
        transport: What sends the requests, an `httpx.HTTPTransport()` when left out. Give
            ``httpx.HTTPTransport(verify=..., http2=True, limits=...)`` for settings of it, which a
            client that is given a transport does not pass on.
        key: Who is limited: a callable that gets the `httpx.Request` and returns a key, or a key
            for all requests. When left out `by_host`: every scheme, host and port for itself.
        timeout: Seconds that a request waits for its turn at most, or a `timedelta`; then
            `RateLimitTimeout` is raised. None waits for ever. httpx's own time-outs begin when the
            request is sent.
        retries: How often a request is sent again that was refused. 0 when left out: the caller
            gets the answer, and only later requests wait, for a retry holds the caller up for as
            long as the server says. It goes out as soon as the server's time is over and it has
            its turn. If the server names no time, after 1 second, then 2, 4, 8.
        max_wait: Seconds that a server may add to the wait of a request, or a `timedelta`; 60 when
            left out, None for no bound. If it asks for more, it gets no request meanwhile, and
            those that would have to wait longer get a `RateLimitTimeout` at once; the one that it
            refused is not sent again, its answer is the caller's. No server is believed to mean
            more than a day.
        statuses: The answers that refuse a request.
        methods: Which requests may be sent again: the idempotent ones when left out. Their bodies
            must be bytes; a stream can't be sent twice.
        obey: Whether to heed what servers say. If not, requests are paced and nothing else.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: A number or a quota is out of range, or retries without `obey`.

    Thread-safe. Closing it closes the transport within, and leaves the limiter open.
    """

    def __init__(
        self,
        limiter: BlockingLimiter | Quota | str | None,
        transport: httpx.BaseTransport | None = None,
        *,
        key: Key | Callable[[httpx.Request], Key] = by_host,
        timeout: float | timedelta | None = None,
        retries: int = 0,
        max_wait: float | timedelta | None = 60.0,
        statuses: Iterable[int] = (429, 503),
        methods: Iterable[str] = IDEMPOTENT,
        obey: bool = True,
    ) -> None:
        self._pacer = Pacer(
            limiter, key, timeout, retries, max_wait, statuses, methods, obey, wait, False,
            "an httpx.Client",
        )  # fmt: skip
        if transport is None:
            transport = httpx.HTTPTransport()
        elif not isinstance(transport, httpx.BaseTransport):
            raise TypeError(
                f"transport must be an httpx.BaseTransport, such as httpx.HTTPTransport(), "
                f"not {type(transport).__name__}"
            )
        self._transport = transport

    @property
    def limiter(self) -> BlockingLimiter:
        """The limiter that paces, also the one that was made from a quota."""
        limiter: BlockingLimiter = self._pacer.limiter
        return limiter

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request in its turn, and read from the answer when the next may go.

        Raises:
            RateLimitTimeout: Its turn did not come in time; it was not sent.
            LimiterClosedError: The limiter is closed.
            StoreUnavailableError: The limiter can't ask its store, and has ``on_error="raise"``.
        """
        pacer = self._pacer
        call = pacer.call(request, request.method, _replayable(request))
        while True:
            decision, granted = pacer.take(
                pacer.limiter, call.key, 1, pacer.timeout_s, pacer.max_wait_s
            )
            if not granted:
                raise RateLimitTimeout(call.late(decision), decision, call.key, request)
            response = self._transport.handle_request(request)
            if call.is_over(response.status_code, _fields(response)):
                return response
            response.close()

    def close(self) -> None:
        """Close the transport within."""
        self._transport.close()

    def __enter__(self) -> RateLimitTransport:
        self._transport.__enter__()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        self._transport.__exit__(exc_type, exc_value, traceback)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.limiter!r}>"


class AsyncRateLimitTransport(httpx.AsyncBaseTransport):
    """`RateLimitTransport` for `httpx.AsyncClient`, in asyncio and in trio.

    ```python
    client = httpx.AsyncClient(transport=AsyncRateLimitTransport("10/second"))
    ```

    The arguments are the same, but that `transport` is an `httpx.AsyncBaseTransport`, and in the
    place of a `RedisRateLimiter` stands an `AsyncRedisRateLimiter`, in asyncio only. Tasks, and
    threads with the same limiter, stand in one line. A task that is cancelled while it waits has
    sent nothing and counts nothing. Trio needs ``nanolimit[anyio]`` besides.
    """

    def __init__(
        self,
        limiter: AwaitedLimiter | Quota | str | None,
        transport: httpx.AsyncBaseTransport | None = None,
        *,
        key: Key | Callable[[httpx.Request], Key] = by_host,
        timeout: float | timedelta | None = None,
        retries: int = 0,
        max_wait: float | timedelta | None = 60.0,
        statuses: Iterable[int] = (429, 503),
        methods: Iterable[str] = IDEMPOTENT,
        obey: bool = True,
    ) -> None:
        self._pacer = Pacer(
            limiter, key, timeout, retries, max_wait, statuses, methods, obey, waited, True,
            "an httpx.AsyncClient",
        )  # fmt: skip
        if transport is None:
            transport = httpx.AsyncHTTPTransport()
        elif not isinstance(transport, httpx.AsyncBaseTransport):
            raise TypeError(
                f"transport must be an httpx.AsyncBaseTransport, such as "
                f"httpx.AsyncHTTPTransport(), not {type(transport).__name__}"
            )
        self._transport = transport

    @property
    def limiter(self) -> AwaitedLimiter:
        """The limiter that paces, also the one that was made from a quota."""
        limiter: AwaitedLimiter = self._pacer.limiter
        return limiter

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request in its turn, and read from the answer when the next may go.

        Raises:
            RateLimitTimeout: Its turn did not come in time; it was not sent.
            LimiterClosedError: The limiter is closed.
            StoreUnavailableError: The limiter can't ask its store, and has ``on_error="raise"``.
        """
        pacer = self._pacer
        call = pacer.call(request, request.method, _replayable(request))
        while True:
            decision, granted = await pacer.take(
                pacer.limiter, call.key, 1, pacer.timeout_s, True, pacer.max_wait_s
            )
            if not granted:
                raise RateLimitTimeout(call.late(decision), decision, call.key, request)
            response = await self._transport.handle_async_request(request)
            if call.is_over(response.status_code, _fields(response)):
                return response
            await response.aclose()

    async def aclose(self) -> None:
        """Close the transport within."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncRateLimitTransport:
        await self._transport.__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        await self._transport.__aexit__(exc_type, exc_value, traceback)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.limiter!r}>"


def _fields(response: httpx.Response) -> dict[str, str]:
    """Return the fields of an answer that may hold advice."""
    fields: dict[str, str] = {}
    for raw_name, raw_value in response.headers.raw:
        name = _RAW_NAMES.get(raw_name.lower())
        if name is not None:
            value = raw_value.decode("latin-1")
            fields[name] = f"{fields[name]}, {value}" if name in fields else value
    return fields


def _replayable(request: httpx.Request) -> bool:
    """Say whether the body can be sent again: others than bytes are used up by being sent."""
    return isinstance(request.stream, httpx.ByteStream)
