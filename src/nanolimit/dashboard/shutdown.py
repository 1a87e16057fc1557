"""Whether the server is about to stop.

ASGI tells an application of the end (`lifespan`) only after the last answer, and uvicorn waits for
that one: a stream that goes on would keep it from ending. But it can be asked: uvicorn handles the
signals itself, by a method of its `Server`, which knows whether it should exit.
"""

from __future__ import annotations

import signal


def is_stopping() -> bool:
    """Say whether the server of this process was told to end. Of servers other than uvicorn, no.

    Those end streams by themselves after a time of grace, or are told of their end by a client
    that goes.
    """
    handler = signal.getsignal(signal.SIGTERM)
    return bool(getattr(getattr(handler, "__self__", None), "should_exit", False))
