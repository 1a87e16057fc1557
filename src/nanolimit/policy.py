"""What a limiter can be told of a key, or of all, while it is in use: limits, exemptions, blocks.

`RateLimiter` inherits these verbs. They are kept by the core, beside the logs (core/record.h), and
hold from the next request on, for all who share the limiter's table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanolimit.clock import NS_PER_SECOND, nanoseconds, shown
from nanolimit.errors import LimiterClosedError
from nanolimit.quota import MAX_WINDOW_NS, Quota, checked_quotas

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from nanolimit._core import Bundle, Limiter
    from nanolimit.limiter import Key

__all__ = ["Policies"]


class Policies:
    """The verbs of a `RateLimiter` that change what holds, and for whom.

    All are thread-safe, and raise `LimiterClosedError` after `close`. What is said of a key stays
    until it is taken back, or is over: `clear` and `reset` forget blocks and denials, but not a
    key's own quota, nor that it is exempt. At most `max_keys` such words are kept.
    """

    __slots__ = ()

    _engine: Limiter | Bundle

    def set_quota(self, key: Key, quota: Quota | str | Sequence[str | Quota] | None) -> None:
        """Give a key a limit of its own, from its next request on. What it has used still counts.

        Args:
            key: Whose.
            quota: The limit, as a `Quota` or as text. Its window must be that of one of the
                limiter's quotas, whose place it takes for this key; several, as text or in a list,
                take the place of several. None: the limiter's own hold again.

        Raises:
            TypeError: The key is of a type that is no key, or `quota` is no quota.
            ValueError: None of the limiter's quotas has this window.
            SharedTableError: A shared table was made without room for such a limit: make it with
                `max_limit`.
            NanolimitError: There is no room for the quotas of more keys.

        The first time that a private limiter needs room for a larger limit it moves its keys to
        another table, as `update` does. Else a fixed amount of work.
        """
        engine = self._governed()
        if quota is None:
            engine.set_quota(key, None)
            return
        engine.set_quota(key, checked_quotas(quota, None))

    def set_exempt(self, key: Key, exempt: bool = True) -> None:
        """Lift all limits of a key, or put them back.

        Requests of an exempt key are allowed, and counted by `stats`, but leave no log. A block
        holds for it all the same.

        Raises:
            TypeError: The key is of a type that is no key, or `exempt` is no bool.
            NanolimitError: There is no room for the exemptions of more keys.
        """
        if not isinstance(exempt, bool):
            raise TypeError(f"exempt must be a bool, not {type(exempt).__name__}")
        self._governed().exempt(key, exempt)

    def update(
        self, quota: int | str | Quota | Sequence[str | Quota], per: float | timedelta | None = None
    ) -> None:
        """Put another quota in the place of the limiter's own, for all keys and at once.

        No log is lost. A shorter window, and any limit, is exact at once; a longer window after one
        of its lengths has passed, for older requests were forgotten. Keys with a quota of their own
        keep it.

        Args:
            quota: As of the constructor. As many as the limiter has; each takes the place of the
                one before it in the same position.
            per: As of the constructor.

        Raises:
            TypeError: As of the constructor.
            ValueError: As of the constructor; or there are more quotas, or fewer.
            SharedTableError: A shared table has no room for the limit, or the window is another:
                only a new table can have that (``on_mismatch="replace"``).

        A limit that there is room for is one word. Else the keys move to another table, one by one
        and without the GIL, while other threads go on; the call returns when all have moved.
        """
        engine = self._open()
        quotas = checked_quotas(quota, per)
        limiters = engine.limiters
        if len(quotas) != len(limiters):
            raise ValueError(
                f"update must be given as many quotas as the limiter has ({len(limiters)}), "
                f"got {len(quotas)}"
            )
        for limiter, each in zip(limiters, quotas, strict=True):
            limiter.require_room(each)
        for limiter, each in zip(limiters, quotas, strict=True):
            limiter.update(each, maker(each))

    def block(self, key: Key, seconds: float | timedelta) -> None:
        """Deny all requests of a key for so long, whatever its log says.

        A block that it has ends; this one takes its place. What `acquire` waits for comes later.

        Args:
            key: Whose.
            seconds: Seconds above 0, to ten years; or a `timedelta`.

        Raises:
            TypeError: The key is of a type that is no key, or `seconds` is no span of time.
            ValueError: `seconds` is out of range.
            NanolimitError: There is no room for the blocks of more keys.
        """
        duration_ns = nanoseconds("seconds", seconds)
        if not 0 < duration_ns <= MAX_WINDOW_NS:
            raise ValueError(
                f"seconds must be > 0 and <= 315576000 (ten years), got {shown(seconds)}"
            )
        self._governed().block(key, duration_ns, duration_ns / NS_PER_SECOND)

    def unblock(self, key: Key) -> bool:
        """End a key's block, and forget its denials in a row and its earlier blocks.

        Returns:
            True if it was blocked.

        Raises:
            TypeError: The key is of a type that is no key.
        """
        return self._governed().unblock(key)

    def _open(self) -> Limiter | Bundle:
        engine = self._engine
        if engine.closed:
            raise LimiterClosedError(f"limiter {engine.name!r} is closed")
        return engine

    def _governed(self) -> Bundle:
        """Return what the checks go through where there is more to a key than its log."""
        return self._open().governing()


def maker(quota: Quota) -> Callable[[int], Quota]:
    """Return what gives a quota of the same window another limit."""

    def with_limit(limit: int) -> Quota:
        return quota if limit == quota.limit else Quota._of(limit, quota.window_ns)

    return with_limit
