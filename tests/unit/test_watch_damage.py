"""A watched table that is damaged while it is watched: an error, not the end of the process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nanolimit import RateLimiter, _core, shared
from nanolimit.errors import SharedTableError
from sharing import in_child, needs_shared

pytestmark = needs_shared


@pytest.mark.parametrize("name", ["api", "api.2"])
def test_a_table_that_is_cut(folder: Path, name: str) -> None:
    RateLimiter("5/minute; 7/hour", shared="api", max_keys=1000).close()
    size = (folder / name).stat().st_size

    def look() -> tuple[object, str, object]:
        # In a child: what is read beyond a file's end is a SIGBUS.
        with shared.watch("api") as watch:
            before = watch.stats().keys
            os.truncate(folder / name, 4096)
            with pytest.raises(SharedTableError) as failure:
                watch.stats()
            with pytest.raises(SharedTableError):
                watch.top()
            RateLimiter("5/minute; 7/hour", shared="new", max_keys=1000).close()
            (folder / f"new{name.removeprefix('api')}").rename(folder / name)
            return before, str(failure.value), watch.stats().keys

    before, says, after = in_child(look)
    assert (before, after) == (0, 0)
    assert f"its size is 4096, expected {size} bytes" in says


def test_a_table_that_was_replaced_and_has_its_name(folder: Path) -> None:
    RateLimiter(5, shared="api", max_keys=1000).close()
    watch = shared.watch("api")
    with (folder / "api").open("r+b") as file:
        _core.mark_replaced(file.fileno())
    with pytest.raises(SharedTableError, match="the next limiter makes it anew"):
        watch.stats()
    with pytest.raises(SharedTableError, match="the next limiter makes it anew"):
        shared.watch("api")
    RateLimiter(5, shared="api", max_keys=1000).allow("me")
    assert watch.stats().allowed == 1
