"""Keys that the index puts side by side: the same bucket, or the same bucket and the same tag.

A limiter's secret is its own, so such keys are found by trying: the test door `fingerprint` tells
where a key would stand. What the index does with the bits is told in core/segment.h.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any, Literal

from doors import fingerprint
from nanolimit import RateLimiter

#: So many whole numbers are tried: about twenty-five to a crowd of one bucket, four or more in
#: the fullest crowds of one tag.
TRIED = 12_000

#: Crowds share these low bits too, so that they stay together while the table grows to 8 segments.
PREFIX = 0b111


def bucket_of(fingerprint: int) -> int:
    """The home bucket in an index segment."""
    return fingerprint >> 40 & 63


def tag_of(fingerprint: int) -> int:
    return (fingerprint >> 56 & 0xFF) or 1


def neighbours(limiter: RateLimiter, share: Literal["bucket", "tag"], size: int) -> list[Any]:
    """`size` keys of the most crowded bucket, which are more than its 12 places, or tags."""
    crowds: defaultdict[object, list[Any]] = defaultdict(list)
    for key in range(TRIED):
        where = fingerprint(limiter, key)
        bucket = bucket_of(where)
        crowd = (bucket, where & PREFIX) if share == "bucket" else (bucket, tag_of(where))
        crowds[crowd].append(key)
    fullest = sorted(crowds.values(), key=len, reverse=True)
    return list(itertools.islice(itertools.chain.from_iterable(fullest), size))
