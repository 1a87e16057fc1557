"""Which node of a cluster holds a key."""

from __future__ import annotations

import binascii
from typing import NamedTuple

from nanolimit.redis.resp import Reply

__all__ = ["SLOTS", "Address", "SlotMap", "redirect", "slot_of"]

SLOTS = 16_384


class Address(NamedTuple):
    """Where a node listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def slot_of(key: bytes) -> int:
    """Return the slot of a key: that of what stands in its first braces, if something does."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    # CRC-16/XMODEM, of which the standard library has a fast one.
    return binascii.crc_hqx(key, 0) & (SLOTS - 1)


def redirect(text: str, asked: Address) -> tuple[int, Address]:
    """Return slot and address of "MOVED 3999 host:port"; no host means the one that was asked.

    Raises:
        ValueError: It is not of that form.
    """
    _, number, where = text.split(" ")
    host, _, port = where.rpartition(":")
    slot = int(number)
    if not 0 <= slot < SLOTS:
        raise ValueError(f"there is no slot {slot}")
    return slot, Address(_host(host.encode(), asked), int(port))


def _host(name: object, asked: Address) -> str:
    # A node that does not know its own name sends none, or "?".
    if not isinstance(name, bytes) or name in (b"", b"?"):
        return asked.host
    return name.decode().strip("[]")


class SlotMap:
    """Who serves each slot. Replaced as a whole, or slot by slot as redirections tell."""

    __slots__ = ("owners",)

    owners: list[Address | None]

    def __init__(self) -> None:
        self.owners = [None] * SLOTS

    @classmethod
    def read(cls, reply: Reply, asked: Address) -> SlotMap:
        """Return the map that CLUSTER SLOTS tells of.

        Raises:
            ValueError: The reply is not one of CLUSTER SLOTS.
        """
        slots = cls()
        if not isinstance(reply, list) or not reply:
            raise ValueError(f"no slots in {reply!r}")
        for row in reply:
            if not isinstance(row, list) or len(row) < 3:
                raise ValueError(f"no range of slots: {row!r}")
            first, last, owner = row[0], row[1], row[2]
            if not (isinstance(first, int) and isinstance(last, int) and isinstance(owner, list)):
                raise ValueError(f"no range of slots: {row!r}")
            port = owner[1] if len(owner) > 1 else None
            if not isinstance(port, int):
                raise ValueError(f"no port: {owner!r}")
            address = Address(_host(owner[0], asked), port)
            slots.owners[first : last + 1] = [address] * (last - first + 1)
        if len(slots.owners) != SLOTS:
            raise ValueError("slots beyond the last one")
        return slots

    def nodes(self) -> list[Address]:
        """All that serve slots."""
        return list(dict.fromkeys(each for each in self.owners if each is not None))
