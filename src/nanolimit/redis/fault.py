"""What can go wrong between here and the server, and whether the script may have run."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from nanolimit.errors import NanolimitError

if TYPE_CHECKING:
    from nanolimit.redis.cluster import Address

__all__ = ["Unavailable", "fault_of_connecting", "fault_of_reply"]


class Unavailable(NanolimitError):
    """The server could not be asked, or gave no answer in time.

    Args:
        reason: What happened, for people: "LOADING Redis is loading ...", "no reply from ...".
        outcome_unknown: Whether the script may have run. Such a call was not sent again.
        origin: Of what this is a part, by its identity: a connection that broke, or a write without
            a reply, is one event, however many requests wait on it. None: it is one by itself.
    """

    reason: str
    outcome_unknown: bool
    origin: object

    node: Address | None = None
    """Of a cluster: which node it was; None if that is not known, or there is only one server."""

    def __init__(self, reason: str, outcome_unknown: bool = False, origin: object = None) -> None:
        # Both go to `args`, so that the exception can be copied like any other.
        super().__init__(reason, outcome_unknown)
        self.reason = reason
        self.outcome_unknown = outcome_unknown
        self.origin = origin

    def again(self) -> Unavailable:
        """Return the same for another request: exceptions that are shared collect tracebacks."""
        other = Unavailable(self.reason, self.outcome_unknown, self.origin)
        other.node = self.node
        other.__cause__ = self.__cause__
        return other

    def __str__(self) -> str:
        return f"{self.reason} (it may have counted)" if self.outcome_unknown else self.reason


# The server looks at these before a script runs, or at its first write: nothing was changed.
_BEFORE_ANY_WRITE = frozenset(
    {
        "ASK", "BUSY", "CLUSTERDOWN", "CROSSSLOT", "DENIED", "LOADING", "MASTERDOWN", "MISCONF",
        "MOVED", "NOAUTH", "NOREPLICAS", "NOSCRIPT", "OOM", "READONLY", "TRYAGAIN", "WRONGPASS",
    }
)  # fmt: skip
# Redis 6 and older wrap what a command in a script said.
_WRAPPED = re.compile(r"user_script: ?\d+: -?([A-Z]+) ")


def code_of(text: str) -> str:
    """Return the code of an error reply: the first word, also of one that a script passed on."""
    wrapped = _WRAPPED.search(text)
    return wrapped[1] if wrapped else text.partition(" ")[0]


def fault_of_reply(text: str) -> Unavailable:
    """Return the fault that an error reply tells of."""
    inside = "user_script" in text  # a command of the script failed, maybe not the first one
    return Unavailable(text, outcome_unknown=inside and code_of(text) not in _BEFORE_ANY_WRITE)


def fault_of_connecting(error: BaseException, name: str) -> Unavailable:
    """Return the fault that an exception of the client library tells of; nothing was sent."""
    text = str(error) or type(error).__name__
    text = text if name in text else f"no connection to {name}: {text}"
    fault = Unavailable(text, origin=object())  # all who wait for this connection are told
    fault.__cause__ = error
    return fault
