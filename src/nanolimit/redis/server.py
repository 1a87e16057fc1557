"""What a server says of itself: what it is, how it evicts, how much memory is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nanolimit.redis.fault import Unavailable
from nanolimit.redis.script import Script

if TYPE_CHECKING:
    from nanolimit.redis.wire import Call, Wire

__all__ = ["KEEPS_ALL", "Server", "servers"]

#: The only maxmemory-policy by which no list is dropped.
KEEPS_ALL = "noeviction"

# By a script, as all that goes over the wire; one may not be allowed to ask.
_INFO = Script.of(
    "info",
    """
    local told = redis.pcall('INFO', 'all')
    return type(told) == 'string' and told or false
    """,
)

# So many keys of a cluster are asked for their nodes: of 16 nodes, one is overlooked once in a
# thousand times.
_PROBES = 256


class Server(NamedTuple):
    """One server, or one node of a cluster, at one moment."""

    run_id: str
    """Which process it is."""

    software: str
    """``"Redis"``, ``"Valkey"`` or what it calls itself."""

    version: str
    """Its version, such as ``"7.0.15"``."""

    clustered: bool
    """Whether it is a node of a cluster."""

    maxmemory_bytes: int
    """How much memory it may use for data; 0: no bound."""

    policy: str
    """Its maxmemory-policy; empty if it does not tell."""

    used_bytes: int
    """Its used_memory."""

    evicted: int
    """Keys evicted since it started, to stay below `maxmemory_bytes`."""

    calls: int
    """Scripts run by EVALSHA since it started, by anybody."""

    calls_us: int
    """Microseconds that these took."""

    @classmethod
    def read(cls, text: str) -> Server:
        """Read what INFO says. What is missing there is 0, or empty."""
        rows = dict(
            line.split(":", 1) for line in text.splitlines() if ":" in line and line[0] != "#"
        )
        valkey = "valkey_version" in rows
        of_scripts = dict(
            pair.split("=", 1) for pair in rows.get("cmdstat_evalsha", "").split(",") if "=" in pair
        )
        return cls(
            run_id=rows.get("run_id", ""),
            software="Valkey" if valkey else "Redis",
            version=rows.get("valkey_version" if valkey else "redis_version", ""),
            clustered=rows.get("cluster_enabled") == "1",
            maxmemory_bytes=_number(rows.get("maxmemory", "")),
            policy=rows.get("maxmemory_policy", ""),
            used_bytes=_number(rows.get("used_memory", "")),
            evicted=_number(rows.get("evicted_keys", "")),
            calls=_number(of_scripts.get("calls", "")),
            calls_us=_number(of_scripts.get("usec", "")),
        )


def servers(wire: Wire, prefix: str) -> list[Server]:
    """Ask the server, or the nodes of the cluster, for what they say of themselves.

    Args:
        wire: What sends.
        prefix: Of names that nobody uses: the nodes of a cluster are found by them. Nothing is
            written.

    Returns:
        Each one once; none if one is not allowed to ask.

    Raises:
        Unavailable: The server can't be asked.
    """
    found = _read(wire.run(_INFO, ()))
    if found is None:
        return []
    if not found.clustered:
        return [found]
    calls: list[Call] = [(_INFO, (b"%b:%d" % (prefix.encode(), i),), ()) for i in range(_PROBES)]
    each: dict[str, Server] = {}
    for start in range(0, _PROBES, 32):
        for reply in wire.run_many(calls[start : start + 32]):
            if isinstance(reply, Unavailable):
                raise reply
            node = _read(reply)
            if node is not None:
                each[node.run_id] = node
    return sorted(each.values())


def _read(reply: object) -> Server | None:
    return Server.read(reply.decode("utf-8", "replace")) if isinstance(reply, bytes) else None


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0
