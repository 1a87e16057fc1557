"""What a distributed limiter raises about the state of its store."""

from __future__ import annotations

from nanolimit.errors import NanolimitError

__all__ = ["StoreUnavailableError"]


class StoreUnavailableError(NanolimitError):
    """The store could not be asked, or did not answer in time; only with ``on_error="raise"``.

    Args:
        name: What the limiter is called.
        reason: What went wrong.
        outcome_unknown: Whether the request may have been counted none the less.
    """

    reason: str
    """What went wrong, in a few words."""

    outcome_unknown: bool
    """Whether the store may have counted the request: it was sent, and no answer came."""

    def __init__(self, name: str, reason: str, outcome_unknown: bool = False) -> None:
        # All go to `args`, so that the exception can be copied and pickled like any other.
        super().__init__(name, reason, outcome_unknown)
        self.reason = reason
        self.outcome_unknown = outcome_unknown

    def __str__(self) -> str:
        text = f"limiter {self.args[0]!r} can't ask its store: {self.reason}"
        if self.outcome_unknown:
            text += "; whether the request was counted is not known, and it was not sent again"
        return text
