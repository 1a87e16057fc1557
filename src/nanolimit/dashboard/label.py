"""Names and keys as a page may show them: what can't be seen, or would trick the eye, in words."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from uuid import UUID

# Letters and symbols by name, and blank to the eye: Hangul fillers and an empty Braille cell.
_BLANK = frozenset("\u115f\u1160\u2800\u3164\uffa0")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\0": "\\0", " ": "space"}
_ADDRESSES = (IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network)
# A name has at most 200 characters, a key's text 128 bytes: this is for keys of another source.
_MOST = 400


def parts(text: str) -> list[str]:
    """Split text into what is shown as it is and, at odd places, names of what can't be seen.

    Controls, directions of writing, separators, lone surrogates, characters without a glyph, and
    spaces that a reader would overlook. The page marks these, so that no plain text looks as they
    do: ``"a\\nb"`` gives ``["a", "\\\\n", "b"]``.
    """
    found = [""]
    if len(text) > _MOST:
        text = f"{text[:_MOST]}…"
    last = len(text) - 1
    for place, char in enumerate(text):
        if char == " ":
            hidden = place in (0, last) or text[place - 1] == " "
        else:
            hidden = not char.isprintable() or char in _BLANK
        if hidden:
            found += [_SHORT.get(char, f"U+{ord(char):04X}"), ""]
        else:
            found[-1] += char
    return found if text else ["", "empty", ""]


def kind(key: object) -> str:
    """Return the type of a key as a reader is told it; empty for a str, which most are.

    ``1`` and ``"1"`` are two keys, and the page must not show them alike.
    """
    if isinstance(key, str):
        return ""
    if isinstance(key, _ADDRESSES):
        return "address"
    return "uuid" if isinstance(key, UUID) else type(key).__name__


def text(key: object) -> str:
    """Return a key as text: itself, or as Python code writes it."""
    if isinstance(key, str):
        return key
    if isinstance(key, (int, UUID, *_ADDRESSES)):
        try:
            return str(key)
        except ValueError:  # an int of more digits than Python writes
            return f"{key:#x}"
    return repr(key)
