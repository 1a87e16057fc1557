"""The asyncio wire in the clothes of that for threads, so that one test will do for both."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

from nanolimit.redis.aiowire import AsyncWire


class Blocking:
    """Runs an AsyncWire in a loop of its own, in a thread of its own."""

    def __init__(self, client_or_url: object, timeout_s: float) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.wire = AsyncWire(client_or_url, timeout_s)

    def _wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def run(self, script: Any, keys: Any, args: Any = ()) -> Any:
        return self._wait(self.wire.run(script, keys, args))

    def run_many(self, calls: Any) -> list[Any]:
        found = self._wait(self.wire.run_many(calls))
        assert isinstance(found, list)
        return found

    def close(self) -> None:
        self._wait(self.wire.aclose())
        self._wait(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
