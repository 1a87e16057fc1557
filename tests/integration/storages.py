"""Storages of `limits` to compare: its own in memory, and ours."""

from __future__ import annotations

from typing import Any

from limits.aio.strategies import STRATEGIES as AIO_STRATEGIES
from limits.storage import storage_from_string
from limits.strategies import STRATEGIES

import nanolimit.compat.limits

SCHEMES = {nanolimit.compat.limits.NanolimitStorage.STORAGE_SCHEME[0]}

MEMORY = "memory://"
PRIVATE = "nanolimit://?clock=python"
SHARED = "nanolimit://side-by-side?clock=python&max_keys=1000"
ALL = [MEMORY, PRIVATE, SHARED]

__all__ = ["AIO_STRATEGIES", "ALL", "MEMORY", "PRIVATE", "SHARED", "STRATEGIES", "storage"]


class Asleep:
    """In the place of memory's timer: says that it runs, and does nothing."""

    def is_alive(self) -> bool:
        return True


def storage(uri: str) -> Any:
    """Make a storage whose answers depend on the time alone.

    memory's timer drops requests that are exactly a window old 10 ms after a hit, and so decides
    by a race whether they still count. Without it they do.
    """
    made: Any = storage_from_string(uri)
    if uri == MEMORY:
        made.timer.cancel()
        made.timer.join()
        made.timer = Asleep()
    return made
