"""Storages of `limits` to compare: its own in memory, and ours."""

from __future__ import annotations

from typing import Any

from limits.aio.strategies import STRATEGIES as AIO_STRATEGIES
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import STRATEGIES

import nanolimit.compat.limits  # noqa: F401  # registers nanolimit://

MEMORY = "memory://"
PRIVATE = "nanolimit://?clock=python"
SHARED = "nanolimit://side-by-side?clock=python&max_keys=1000"
ALL = [MEMORY, PRIVATE, SHARED]

__all__ = ["AIO_STRATEGIES", "ALL", "MEMORY", "PRIVATE", "SHARED", "STRATEGIES", "still", "storage"]


class Asleep:
    """In the place of memory's timer: says that it runs, and does nothing."""

    def is_alive(self) -> bool:
        return True


def still(made: Any) -> Any:
    """Stop the timer of a storage in memory, so that its answers depend on the time alone.

    It drops requests that are exactly a window old 10 ms after a hit, and so decides by a race
    whether they still count; and freezegun shows its thread the real time.
    """
    if isinstance(made, MemoryStorage):
        made.timer.cancel()
        made.timer.join()
        asleep: Any = Asleep()
        made.timer = asleep
    return made


def storage(uri: str) -> Any:
    """Make a storage whose answers depend on the time alone."""
    return still(storage_from_string(uri))
