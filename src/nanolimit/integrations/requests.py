"""requests: an adapter that paces what a session sends, and obeys what servers answer.

    session = requests.Session()
    adapter = RateLimitAdapter("10/second")
    session.mount("https://", adapter)
    session.mount("http://", adapter)

It needs requests >= 2.32: ``pip install nanolimit[requests]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from nanolimit.errors import RateLimitExceeded
from nanolimit.integrations.pace import IDEMPOTENT, Pacer, origin
from nanolimit.waiting import wait

try:
    import requests
    from requests.adapters import BaseAdapter, HTTPAdapter
except ImportError as _error:
    raise ImportError(
        "nanolimit.integrations.requests needs requests >= 2.32: pip install 'nanolimit[requests]'"
    ) from _error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from datetime import timedelta

    from nanolimit._core import Decision
    from nanolimit.limiter import Key
    from nanolimit.quota import Quota
    from nanolimit.remote import BlockingLimiter

__all__ = ["IDEMPOTENT", "RateLimitAdapter", "RateLimitTimeout", "by_host"]


def by_host(request: requests.PreparedRequest) -> str:
    """Return the origin that a request goes to, as its key: ``"https://api.example.org"``.

    Scheme, host and port. `nanolimit.integrations.httpx` has the same keys.
    """
    url = urlsplit(request.url or "")
    return origin(url.scheme, url.hostname or "", url.port)


class RateLimitTimeout(requests.exceptions.Timeout, RateLimitExceeded):
    """A request was not sent, because its turn would come too late.

    It is a `Timeout` of requests, and nanolimit's `RateLimitExceeded`, with `decision`, `key` and
    `retry_after`.
    """

    def __init__(
        self,
        message: str,
        decision: Decision,
        key: object,
        request: requests.PreparedRequest | None = None,
    ) -> None:
        requests.exceptions.Timeout.__init__(self, message, request=request)
        self.args = (message, decision, key)
        self.decision = decision
        self.key = key

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.args


class RateLimitAdapter(HTTPAdapter):
    """An adapter for `requests.Session.mount` that lets requests pass in their turn.

    ```python
    session = requests.Session()
    session.mount("https://", RateLimitAdapter("10/second"))
    ```

    A request waits, first come, first served, until the limit of its key has room, and is then
    sent. If an answer says that the server wants no more for a while, nobody sends to that key
    until it is over: no thread, and no other process if the limiter's table is shared. Redirects
    are requests of their own.

    Mount one adapter for both ``https://`` and ``http://``, or give two the same limiter.

    Args:
        limiter: A `RateLimiter`; or a quota, ``"10/second"`` or a `Quota`; or None to do only what
            servers say; or a `RedisRateLimiter`. The turns of that hold for all machines, and what
            servers say for this object only.
        adapter: What sends the requests, if it is to be another than this one.
        key: Who is limited: a callable that gets the `requests.PreparedRequest` and returns a key,
            or a key for all requests. When left out `by_host`: every scheme, host and port for
            itself.
        timeout: Seconds that a request waits for its turn at most, or a `timedelta`; then
            `RateLimitTimeout` is raised. None waits for ever. The time-out of a request begins
            when it is sent.
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
            must be bytes or text; a stream can't be sent twice.
        obey: Whether to heed what servers say. If not, requests are paced and nothing else.
        options: Of `HTTPAdapter`: ``pool_connections``, ``pool_maxsize``, ``max_retries``,
            ``pool_block``. ``max_retries`` is urllib3's and knows nothing of turns: leave it to
            failed connections.

    Raises:
        TypeError: An argument is of the wrong type, or options beside an adapter.
        ValueError: A number or a quota is out of range, or retries without `obey`.

    Thread-safe. A session with it can be pickled if `limiter` is a quota or None, and if `key` can:
    the copy counts for itself. Closing it closes connections, and leaves the limiter open.
    """

    # What is pickled. (requests says that it is an instance's.)
    __attrs__: list[str] = [*HTTPAdapter.__attrs__, "_pacer", "_adapter"]  # noqa: RUF012

    def __init__(
        self,
        limiter: BlockingLimiter | Quota | str | None,
        adapter: BaseAdapter | None = None,
        *,
        key: Key | Callable[[requests.PreparedRequest], Key] = by_host,
        timeout: float | timedelta | None = None,
        retries: int = 0,
        max_wait: float | timedelta | None = 60.0,
        statuses: Iterable[int] = (429, 503),
        methods: Iterable[str] = IDEMPOTENT,
        obey: bool = True,
        **options: Any,
    ) -> None:
        self._pacer = Pacer(
            limiter, key, timeout, retries, max_wait, statuses, methods, obey, wait, False,
            "a session of requests",
        )  # fmt: skip
        if adapter is not None:
            if not isinstance(adapter, BaseAdapter):
                raise TypeError(
                    f"adapter must be an adapter of requests, such as HTTPAdapter(), "
                    f"not {type(adapter).__name__}"
                )
            if options:
                raise TypeError(f"{min(options)} goes to the adapter that is given, not here")
        self._adapter = adapter
        super().__init__(**options)

    @property
    def limiter(self) -> BlockingLimiter:
        """The limiter that paces, also the one that was made from a quota."""
        limiter: BlockingLimiter = self._pacer.limiter
        return limiter

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Send a request in its turn, and read from the answer when the next may go.

        Args:
            request: What to send.
            args: As of `HTTPAdapter.send`.
            kwargs: As of `HTTPAdapter.send`.

        Returns:
            The `requests.Response`.

        Raises:
            RateLimitTimeout: Its turn did not come in time; it was not sent.
            LimiterClosedError: The limiter is closed.
            StoreUnavailableError: The limiter can't ask its store, and has ``on_error="raise"``.
        """
        pacer = self._pacer
        call = pacer.call(request, request.method or "", _replayable(request))
        while True:
            decision, granted = pacer.take(
                pacer.limiter, call.key, 1, pacer.timeout_s, pacer.max_wait_s
            )
            if not granted:
                raise RateLimitTimeout(call.late(decision), decision, call.key, request)
            if self._adapter is None:
                response = super().send(request, *args, **kwargs)
            else:
                response = self._adapter.send(request, *args, **kwargs)
                # Who sends another request by it, such as HTTPDigestAuth, must wait as well.
                response.connection = self
            if call.is_over(response.status_code, response.headers):
                return response
            response.close()

    def close(self) -> None:
        """Close all connections."""
        super().close()
        if self._adapter is not None:
            self._adapter.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.limiter!r}>"


def _replayable(request: requests.PreparedRequest) -> bool:
    """Say whether the body can be sent again: others than these are used up by being sent."""
    return request.body is None or isinstance(request.body, (bytes, str))
