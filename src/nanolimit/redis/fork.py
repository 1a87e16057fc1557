"""What holds locks and sockets, and must be made anew in the child of a fork.

Without the GIL, dicts and other containers have locks of their own, which a thread of the parent
may have held at that moment: those that threads share are made anew as well.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from typing import Protocol

__all__ = ["call_after_fork", "renew_after_fork"]


class Renewable(Protocol):
    """Has to be told in a child."""

    def after_fork(self) -> None:
        """Forget locks that threads of the parent held, and sockets that are the parent's."""


_kept: weakref.WeakSet[Renewable] = weakref.WeakSet()
_functions: list[Callable[[], None]] = []


def renew_after_fork(thing: Renewable) -> None:
    """Call `after_fork` of it in every child, as long as it lives."""
    _kept.add(thing)


def call_after_fork(function: Callable[[], None]) -> None:
    """Call a function of a module in every child."""
    _functions.append(function)


def _renew() -> None:
    for function in _functions:
        function()
    for thing in list(_kept):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew)
