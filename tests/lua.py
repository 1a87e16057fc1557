"""Scripts of the tests, in the form in which the wire takes them."""

from __future__ import annotations

import hashlib


class Lua:
    """A script with its hash."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()


EMPTY = Lua("return 0")
# What shows whether a call ran, and how often.
COUNT = Lua("return redis.call('INCRBY', KEYS[1], ARGV[1])")
LOOP = Lua("while true do end")
