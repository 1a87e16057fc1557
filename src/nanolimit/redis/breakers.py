"""Breakers: one for each node of a Cluster, so that one that hangs takes only its keys along."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from nanolimit.redis.breaker import Breaker
from nanolimit.redis.cluster import slot_of
from nanolimit.redis.fork import renew_after_fork

if TYPE_CHECKING:
    from nanolimit.redis.cluster import Address, SlotMap

__all__ = ["BY_NODE", "Breakers"]


class Mapped(Protocol):
    """A wire, as far as it matters here."""

    @property
    def slots(self) -> SlotMap | None:
        """Who serves what, of a cluster."""


class _ByNode(Breaker):
    """Stands where one server has its breaker: nobody passes, and so looks for that of a node.

    So one server's path does not ask whether it is one of a cluster.
    """

    __slots__ = ()

    def enter(self, now: float) -> int | None:
        """Give no leave, ever."""
        return None


#: In the place of a breaker for all: each node has its own.
BY_NODE = _ByNode()


class Breakers:
    """The breakers of one limiter: of its server; or of the nodes that the map of slots names.

    Slots that nobody is known to serve have one together: that of a store of which it is not known,
    or not yet, that it is a cluster. Nodes come and go with the map: `follow` it. There are as many
    as it has nodes, and one more.

    Thread-safe.

    Args:
        wire: Its `slots` say who serves what.
        make: Returns a breaker for a node; None: for what nobody is known to serve.
    """

    __slots__ = ("__weakref__", "_lock", "_make", "_of", "_slots", "_wire", "single")

    single: Breaker
    """That of one server, or of what nobody is known to serve."""

    def __init__(self, wire: Mapped, make: Callable[[Address | None], Breaker]) -> None:
        self._wire = wire
        self._make = make
        self.single = make(None)
        # Replaced when it changes: it is read without the lock, and needs none in a child.
        self._of: dict[Address | None, Breaker] = {None: self.single}
        # The map that it goes by.
        self._slots: SlotMap | None = None
        # Reentrant, like every lock of the face: a signal handler may ask the limiter as well.
        self._lock = threading.RLock()
        renew_after_fork(self)

    def of(self, name: bytes) -> Breaker | None:
        """Return that of the node that serves a list of this name; None: `follow` the map first."""
        slots = self._wire.slots
        if slots is None:
            return self.single
        if slots is not self._slots:
            return None
        return self._of.get(slots.owners[slot_of(name)])

    def at(self, node: Address | None) -> Breaker | None:
        """Return that of a node; None: the map that was followed last does not name it."""
        return self._of.get(node)

    def follow(self) -> list[Breaker]:
        """Go by the map as it is now.

        Returns:
            Those that were open, of nodes that serve nothing any more, and are closed now: the keys
            are another's.

        A look at each slot, a fraction of a millisecond; needed for a new map or a new node only.
        """
        with self._lock:
            slots = self._wire.slots
            if slots is None:
                return []
            nodes: set[Address | None] = set()
            last: object = slots
            for node in slots.owners:
                if node is not last:  # a range of slots has one
                    nodes.add(node)
                    last = node
            known = self._of
            if nodes == {None}:  # an empty map tells nothing: in a new event loop all begins so
                nodes.update(known)
            serve = {node: known.get(node) or self._make(node) for node in nodes}
            serve[None] = self.single
            self._of = serve
            self._slots = slots
        return [each for node, each in known.items() if node not in nodes and each.forgive()]

    def why(self) -> str | None:
        """Return why some are not closed; None: all are."""
        return "; ".join(each.why for each in self._of.values() if each.state != "closed") or None

    def after_fork(self) -> None:
        """In the child: a thread of the parent may have held the lock."""
        self._lock = threading.RLock()
