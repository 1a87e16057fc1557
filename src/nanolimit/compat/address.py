"""Where a storage's tables are, and how they are made: ``nanolimit:///run/limits?max_keys=10000``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from nanolimit import table as tables
from nanolimit.algorithm import most
from nanolimit.clock import shown
from nanolimit.limiter import RateLimiter
from nanolimit.place import group_id, place_of
from nanolimit.quota import Quota

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,149}")
_FORMS = (
    "nanolimit:// is private memory, nanolimit:///path/of/a/table and nanolimit://name are shared"
)

# How many requests a key of a shared table holds on average, if nobody says: half of what a
# RateLimiter takes, as there is a table for each window and a container's /dev/shm is small.
TYPICAL = 16


class Address(NamedTuple):
    """What the URI and the options of a storage say."""

    # The name or path that the shared tables' names begin with. None: private memory.
    shared: str | None = None
    # None: the default of RateLimiter, 1,000,000, or 100,000 in a shared table.
    max_keys: int | None = None
    clock: Literal["engine", "python"] = "engine"
    on_full: Literal["allow", "deny", "evict"] = "allow"
    typical: int = TYPICAL
    group: str | int | None = None
    stall_timeout: float = 0.05
    on_stall: Literal["allow", "deny", "wait"] = "allow"


def _whole(option: str, value: object) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9][0-9_]*", value):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{option} must be a whole number, such as {option}=10000, not {shown(value)}")


def _seconds(option: str, value: object) -> float:
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError:
            pass
    raise ValueError(f"{option} must be seconds, such as {option}=0.05, not {shown(value)}")


def _choice(*choices: str) -> Callable[[str, object], str]:
    def checked(option: str, value: object) -> str:
        if value in choices:
            return str(value)
        *names, last = map(repr, choices)
        raise ValueError(f"{option} must be {', '.join(names)} or {last}, not {shown(value)}")

    return checked


def _group(option: str, value: object) -> str | int:
    if isinstance(value, str) and value and not value.isdigit():
        return value
    return _whole(option, value)


_OPTIONS: dict[str, Callable[[str, object], Any]] = {
    "max_keys": _whole,
    "clock": _choice("engine", "python"),
    "on_full": _choice("allow", "deny", "evict"),
    "typical": _whole,
    "group": _group,
    "stall_timeout": _seconds,
    "on_stall": _choice("allow", "deny", "wait"),
}
_SHARED_ONLY = ("typical", "group", "stall_timeout", "on_stall")


def _place(uri: str) -> str | None:
    """Return the name or path that a URI gives, or None."""
    parts = urlsplit(uri)
    name, path = unquote(parts.netloc), unquote(parts.path)
    if parts.fragment:
        raise ValueError(f"storage URI {shown(uri)} has a '#': write %23 in a path")
    if not name and not path:
        return None
    if name and path:
        raise ValueError(
            f"storage URI {shown(uri)} has a name, {name!r}, and a path, {path!r}: "
            f"a path begins with a third slash; {_FORMS}"
        )
    if path:
        if not path.startswith("/") or path.endswith("/"):
            raise ValueError(
                f"storage URI {shown(uri)} must have the absolute path of a file, not "
                f"{path!r}; {_FORMS}"
            )
    elif not _NAME.fullmatch(name):
        raise ValueError(
            f"storage URI {shown(uri)} must have a name of 1 to 150 letters, digits, '.', '_' and "
            f"'-' that does not begin with '.', not {name!r}; {_FORMS}"
        )
    return path or name


def parsed(uri: str, options: Mapping[str, object]) -> Address:
    """Return what a storage's URI and its options say.

    Args:
        uri: Such as ``nanolimit:///run/limits?max_keys=10000``.
        options: The same options by keyword, as strs or as what they are.

    Raises:
        ValueError: The URI is not understood; there is no such option, it is given twice, or its
            value is none that it can have. The message names it.
        SharedTableError: This platform has no shared tables, or this machine no such group.
    """
    given = dict(options)
    for option, value in parse_qsl(urlsplit(uri).query, keep_blank_values=True):
        if option in given:
            raise ValueError(f"{option} is given twice: {shown(given[option])} and {value!r}")
        given[option] = value
    shared = _place(uri)
    for option in given:
        if option not in _OPTIONS:
            raise ValueError(
                f"there is no option {shown(option)}: those of a nanolimit storage are "
                f"{', '.join(_OPTIONS)}"
            )
        if shared is None and option in _SHARED_ONLY:
            raise ValueError(
                f"{option} is for shared tables only, and storage URI {shown(uri)} names none: "
                f"leave it out, or name one; {_FORMS}"
            )
    address = Address(
        shared, **{option: _OPTIONS[option](option, value) for option, value in given.items()}
    )
    _try_out(address)
    return address


def _try_out(address: Address) -> None:
    """Raise now what the first request would raise."""
    if address.shared is None:
        RateLimiter(1, per=1, max_keys=address.max_keys, on_full=address.on_full).close()
        return
    tables.require_platform()
    if address.max_keys is not None:
        tables.checked_max_keys(address.max_keys)
    tables.checked_typical(address.typical, Quota(most("sliding-log"), per=1))
    RateLimiter(
        1,
        per=1,
        shared=True,
        max_keys=1,
        stall_timeout=address.stall_timeout,
        on_stall=address.on_stall,
    ).close()
    place = place_of(address.shared)
    if place.kind == "path" and not place.directory.is_dir():
        raise ValueError(
            f"storage URI names a shared table in {str(place.directory)!r}, which is no directory: "
            f"make it, best on a tmpfs such as /dev/shm or /run"
        )
    if address.group is not None:
        group_id(address.group)
        if place.kind == "default":
            raise ValueError(
                f"group={address.group} needs a table in a directory that the group can reach: "
                f"give a path, nanolimit:///path/of/a/table, or set NANOLIMIT_DIR"
            )
