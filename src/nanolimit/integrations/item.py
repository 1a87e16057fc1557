"""Lists of items as HTTP writes them: structured fields, RFC 9651, read strictly.

``"burst";r=0;t=3, "daily";r=17`` is two items with two parameters each. Only what the rate limit
fields use is kept, whole numbers and strings; every other kind must be well formed, and is `None`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Item", "read_items"]

# Longer fields are not read: nobody has so many limits, and reading takes a client's time.
LONGEST = 8192

# RFC 9651, section 3.3: the kinds of bare items. What comes after one must be a comma, a semicolon
# or the end, so that a number with a digit too many is none.
_BARE = r"""(?:
      (?P<integer> -?[0-9]{1,15} ) (?![0-9.])
    | "(?P<string> (?: [\x20-\x21\x23-\x5b\x5d-\x7e] | \\["\\] )* )"
    | -?[0-9]{1,12} \. [0-9]{1,3}
    | [A-Za-z*] [!\#$%&'*+\-.^_`|~0-9A-Za-z:/]*
    | : [A-Za-z0-9+/=]* :
    | \? [01]
    | @ -?[0-9]{1,15} (?![0-9.])
    | % " (?: [\x20-\x21\x23-\x24\x26-\x7e] | %[0-9a-f]{2} )* "
)"""
_ITEM = re.compile(_BARE, re.X)
_PARAMETER = re.compile(rf"; [ ]* (?P<key> [a-z*][a-z0-9_\-.*]* ) (?P<valued> = {_BARE} )?", re.X)
_BETWEEN = re.compile(r"[ \t]*(?:(?P<comma>,)[ \t]*)?")
_ESCAPED = re.compile(r'\\(["\\])')


class Item(NamedTuple):
    """One item: its value and its parameters, of which the last of a name counts."""

    value: int | str | None
    parameters: dict[str, int | str | None]


def read_items(field: str) -> list[Item] | None:
    """Read a field that is a List of Items.

    Args:
        field: The field's value; of several lines, joined with commas.

    Returns:
        The items. None if the field is malformed anywhere, has an inner list, which is no item, or
        more than 8,192 characters: then all of it is to be ignored.

    Never raises. Takes time in proportion to the length. Source: RFC 9651, section 4.2.
    """
    if len(field) > LONGEST:
        return None
    text = field.lstrip(" ")
    items: list[Item] = []
    position = 0
    while position < len(text):
        bare = _ITEM.match(text, position)
        if bare is None:
            return None
        position = bare.end()
        parameters: dict[str, int | str | None] = {}
        while (parameter := _PARAMETER.match(text, position)) is not None:
            parameters[parameter["key"]] = _value(parameter) if parameter["valued"] else None
            position = parameter.end()
        items.append(Item(_value(bare), parameters))
        # Tabs may stand here, and not before all.
        between = _BETWEEN.match(text, position)
        if between is None:
            return None
        position = between.end()
        # A comma, or the end, and not both.
        if (between["comma"] is None) != (position == len(text)):
            return None
    return items


def _value(found: re.Match[str]) -> int | str | None:
    if found["integer"] is not None:
        return int(found["integer"])
    string = found["string"]
    return None if string is None else _ESCAPED.sub(r"\1", string)
