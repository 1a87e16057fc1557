"""Labels: how keys and names are written where they tell points apart."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nanolimit.top import TopKey

__all__ = ["denials", "plain"]


def plain(text: str) -> str:
    r"""Return the text as UTF-8 can carry it: half a surrogate pair becomes ``\udc80``.

    A key may be any str, also one that came out of bytes by ``surrogateescape``, and one label
    that can't be encoded would fail the whole scrape.
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def denials(top: Iterable[TopKey], key_text: Callable[[Any], str] | None = None) -> dict[str, int]:
    """Return the denials of keys by the text of each, in the order in which they came.

    A str is its own text; bytes and tuples are written as Python writes them, and of the rest, of
    ints, UUIDs and addresses, the plain text is taken. ``1`` and ``"1"`` are two users: where both
    are here, the one that is no str is written ``1 (int)``. Keys that can't be told apart count
    together: those that were cut after the same 128 bytes, and those for which `key_text` gives
    the same.

    Args:
        top: The keys denied most.
        key_text: Gives the text of a key, in the place of what is said above.

    Raises:
        TypeError: `key_text` gave something else than a str.
    """
    texts: dict[int, str] = {}
    writers: dict[str, type] = {}
    listed = list(top)
    # Strs first: they keep their own text whatever else is there, and whichever is denied more.
    ranks = sorted(range(len(listed)), key=lambda rank: not isinstance(listed[rank].key, str))
    for rank in ranks:
        key = listed[rank].key
        if key_text is not None:
            text = key_text(key)
            if not isinstance(text, str):
                raise TypeError(f"key_text must return a str, not {type(text).__name__}")
            kind: type = str
        else:
            kind = type(key)
            # str() of bytes says the same, but is an error under `python -bb`.
            text = repr(key) if isinstance(key, bytes) else str(key)
        text = plain(text)
        while writers.setdefault(text, kind) is not kind:
            text = f"{text} ({kind.__name__})"
        texts[rank] = text
    found: dict[str, int] = {}
    for rank, each in enumerate(listed):
        found[texts[rank]] = found.get(texts[rank], 0) + each.denied
    return found
