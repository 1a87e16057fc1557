"""Locks that the child of a fork finds open.

A thread that holds a lock while another one forks does not exist in the child: nobody would ever
open the lock there. (What these locks guard is whole between any two steps, so the child needs
nothing else.)
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Protocol

    class Owner(Protocol):
        """What has a lock, and can have a new one."""

        def _renew_lock(self) -> None: ...


# By id and not in a set: a subclass may have an __eq__ and no __hash__.
_owners: weakref.WeakValueDictionary[int, Owner] = weakref.WeakValueDictionary()
_adding = threading.RLock()


def give_lock(owner: Owner) -> None:
    """Give it its lock, now and in the child of a fork."""
    owner._renew_lock()
    with _adding:
        _owners[id(owner)] = owner


def _renew_locks() -> None:
    global _adding
    _adding = threading.RLock()
    for owner in list(_owners.values()):
        owner._renew_lock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_locks)
