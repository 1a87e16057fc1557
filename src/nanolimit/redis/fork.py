"""What holds locks and sockets, and must be made anew in the child of a fork."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["renew_after_fork"]


class Renewable(Protocol):
    """Has to be told in a child."""

    def after_fork(self) -> None:
        """Forget locks that threads of the parent held, and sockets that are the parent's."""


_kept: weakref.WeakSet[Renewable] = weakref.WeakSet()


def renew_after_fork(thing: Renewable) -> None:
    """Call `after_fork` of it in every child, as long as it lives."""
    _kept.add(thing)


def _renew() -> None:
    for thing in list(_kept):
        thing.after_fork()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew)
