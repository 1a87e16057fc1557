"""A script call on its way, through all the answers that mean "not run, ask otherwise"."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nanolimit.redis.cluster import slot_of
from nanolimit.redis.fault import Unavailable, fault_of_reply
from nanolimit.redis.resp import (
    ASKING,
    ErrorReply,
    Reply,
    ScriptLike,
    Word,
    pack,
    pack_source,
)

__all__ = ["HOPS_MAX", "TRY_AGAIN_S", "Request"]

# As often a call is sent anew because it did not run. A slot on the move takes three: MOVED,
# NOSCRIPT there, and ASK.
HOPS_MAX = 6
# A slot whose keys are being moved is asked again after so many seconds.
TRY_AGAIN_S = 0.005


class Request:
    """One call and how it is to be sent next.

    Args:
        script: What to run.
        keys: Its keys, all of one slot.
        args: Its arguments.
    """

    __slots__ = ("_args", "_keys", "_script", "asking", "by_source", "result", "tell")

    asking: bool
    by_source: bool
    # Who is told of the first reply.
    tell: Callable[[Reply], None] | None
    # None until there is one.
    result: Reply | Unavailable

    def __init__(self, script: ScriptLike, keys: Sequence[bytes], args: Sequence[Word]) -> None:
        self._script = script
        self._keys = keys
        self._args = args
        self.asking = False
        self.by_source = False
        self.tell = None
        self.result = None

    @property
    def slot(self) -> int | None:
        """Of its keys; None if there are none."""
        return slot_of(self._keys[0]) if self._keys else None

    def packed(self) -> bytes:
        """The bytes to be sent."""
        if self.by_source:
            data = pack_source(self._script, self._keys, self._args)
        else:
            data = pack(self._script, self._keys, self._args)
        return ASKING + data if self.asking else data

    def settle(self, reply: Reply) -> str | None:
        """Take a reply: the result, or a reason to send it anew, for it did not run.

        Returns:
            None if there is a result now, else the code of that reason, one of NOSCRIPT, MOVED,
            ASK and TRYAGAIN.
        """
        if type(reply) is not ErrorReply:
            self.result = reply
            return None
        # The result too of one that is sent anew, if that comes to nothing in the end.
        self.result = fault_of_reply(reply.text)
        code = reply.text.partition(" ")[0]
        return code if code in _SEND_ANEW else None


_SEND_ANEW = frozenset({"NOSCRIPT", "MOVED", "ASK", "TRYAGAIN"})
