"""The exceptions: what they are, what they say, and that their module is a leaf."""

from __future__ import annotations

import ast
import copy
import pickle
from pathlib import Path

import pytest

import nanolimit
from nanolimit import (
    LimiterClosedError,
    ManualClock,
    NanolimitError,
    RateLimiter,
    RateLimitExceeded,
)
from nanolimit import errors as errors_module


def test_the_family() -> None:
    assert issubclass(LimiterClosedError, NanolimitError)
    assert issubclass(RateLimitExceeded, NanolimitError)
    assert issubclass(NanolimitError, Exception)
    assert not issubclass(NanolimitError, (ValueError, TypeError, RuntimeError, OSError))
    assert nanolimit.NanolimitError is errors_module.NanolimitError


def denied() -> nanolimit.Decision:
    clock = ManualClock()
    limiter = RateLimiter(2, per=60, clock=clock)
    limiter.allow("me", 2)
    clock.advance(20)
    return limiter.check("me")


def test_rate_limit_exceeded_tells_the_decision() -> None:
    decision = denied()
    error = RateLimitExceeded(decision, "me")
    assert error.decision is decision
    assert error.key == "me"
    assert error.args == (decision, "me")
    assert error.retry_after == decision.retry_after == 40.0
    assert str(error) == "limit of 2 per 60 s exceeded, retry after 40.000 s"
    assert "me" not in str(error).split()
    with pytest.raises(NanolimitError):
        raise error


def test_the_key_may_be_left_out() -> None:
    assert RateLimitExceeded(denied()).key is None


def test_it_can_be_copied_and_travels_between_processes() -> None:
    error = RateLimitExceeded(denied(), ("me", 1))
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert (other.key, other.retry_after) == (("me", 1), 40.0)
        assert str(other) == str(error)


def test_the_module_imports_nothing_of_the_package_at_run_time() -> None:
    tree = ast.parse(Path(errors_module.__file__).read_text(encoding="utf-8"))
    imported = [
        name
        for node in tree.body  # what stands under TYPE_CHECKING is one level down
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    ]
    assert imported == ["__future__", "typing"]


def test_the_core_raises_this_very_class() -> None:
    limiter = RateLimiter()
    limiter.close()
    with pytest.raises(LimiterClosedError) as caught:
        limiter.allow("k")
    assert type(caught.value) is errors_module.LimiterClosedError
    assert limiter.name in str(caught.value)
