"""What a distributed limiter raises about the state of its store."""

from __future__ import annotations

# It stands in the face, so that integrations can answer it without knowing the store.
from nanolimit.remote import StoreUnavailableError

__all__ = ["StoreUnavailableError"]
