"""`NANOLIMIT`: what Django's settings say about limits, checked and made.

It knows no framework: it reads a dict. What is wrong in it is a ValueError that names the entry.
"""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Mapping
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nanolimit.clock import shown
from nanolimit.errors import NanolimitError
from nanolimit.integrations.key import client_ip, user
from nanolimit.integrations.rule import Rule
from nanolimit.limiter import RateLimiter
from nanolimit.place import table_of
from nanolimit.quota import MAX_LIMIT, Quota, checked_quotas
from nanolimit.remote import is_limiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from nanolimit.remote import AnyLimiter

_OWN = (
    "LIMITER", "KEY", "TRUSTED_PROXIES", "COST", "EXEMPT", "ON_DENIED", "HEADERS", "RULES",
    "ON_ERROR", "NAME",
)  # fmt: skip
# Arguments of RateLimiter, in capitals; the second ones go with SHARED.
_PRIVATE = ("ALGORITHM", "MAX_KEYS", "ON_FULL", "MAX_LOG", "BACKOFF", "ENFORCE", "CLOCK")
_SHARED = ("ON_MISMATCH", "MODE", "GROUP", "STALL_TIMEOUT", "ON_STALL", "TYPICAL", "MAX_LIMIT")
KNOWN = (*_OWN, *_PRIVATE, "SHARED", *_SHARED)

_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


class Setting:
    """What one `NANOLIMIT` dict says. Immutable once it is made.

    Raises:
        ValueError: An entry is unknown or wrong; the message names it, and what would do.
    """

    def __init__(self, given: object) -> None:
        if not isinstance(given, Mapping):
            raise ValueError(
                f"NANOLIMIT must be a dict such as {{'LIMITER': '100/minute'}}, not {shown(given)}"
            )
        for name in given:
            if name not in KNOWN:
                near = difflib.get_close_matches(str(name).upper(), KNOWN, 1)
                mend = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(KNOWN)}"
                raise ValueError(f"NANOLIMIT has no {shown(name)}: {mend}")
        self._given = given
        self.shared: Any = given.get("SHARED")
        if self.shared is None:
            for name in _SHARED:
                if name in given:
                    raise ValueError(f"NANOLIMIT[{name!r}] goes with NANOLIMIT['SHARED']")
        else:
            _named("SHARED", lambda: table_of(self.shared, "rule"))
        self._private = {name.lower(): given[name] for name in _PRIVATE if name in given}
        if isinstance(self._private.get("clock"), str):
            self._private["clock"] = _imported("CLOCK", self._private["clock"])
        self._with_shared = {name.lower(): given[name] for name in _SHARED if name in given}
        # What is wrong with a limiter's arguments shows now, also where only throttles make them.
        for name, value in self._private.items():
            _named(name.upper(), partial(RateLimiter, MAX_LIMIT, **{name: value}))
        self.key: Any = self._key()
        self.cost: Any = self._callable("COST", 1) if "COST" in given else 1
        self.exempt: Any = self._callable("EXEMPT", None)
        self.on_denied: Any = self._callable("ON_DENIED", None)
        self.headers: Any = given.get("HEADERS", "draft")
        self.on_error: Any = given.get("ON_ERROR", "deny")
        self.name: Any = given.get("NAME")
        self.limiter: AnyLimiter | None = self._limiter("LIMITER", given.get("LIMITER"), None)
        self.rules: list[Rule] = [
            self._rule(number, rule) for number, rule in enumerate(self._rules())
        ]

    def options(self, shared: Any) -> dict[str, Any]:
        """Return the arguments of a limiter that has this table, or none."""
        if shared is None:
            return dict(self._private)
        return {**self._private, **self._with_shared, "shared": shared}

    def made(self, limit: Any, what: str | None) -> AnyLimiter:
        """Return the limiter that was given, or make one of a quota.

        Args:
            limit: Either of them.
            what: What tells it from the project's other limiters, for the name of its table.

        Raises:
            ValueError, TypeError, NanolimitError: As `RateLimiter`.
        """
        if is_limiter(limit):
            return limit  # type: ignore[no-any-return]
        if not isinstance(limit, (str, Quota, list, tuple)):
            raise TypeError(
                f"it must be a RateLimiter or a quota such as '5/minute', not {shown(limit)}"
            )
        shared = self.shared
        if shared is not None and what is not None:
            shared = table_of(shared, what)
        return RateLimiter(limit, **self.options(shared))

    def _limiter(self, name: str, limit: Any, what: str | None) -> AnyLimiter | None:
        if limit is None:
            return None
        if isinstance(limit, str) and _DOTTED.fullmatch(limit):
            limit = _imported(name, limit)
        return _named(name, lambda: self.made(limit, what))  # type: ignore[no-any-return]

    def _key(self) -> Any:
        given = self._given
        proxies = given.get("TRUSTED_PROXIES", ())
        address = _named("TRUSTED_PROXIES", lambda: client_ip(proxies))
        key = given.get("KEY", "client_ip")
        if key == "client_ip":
            return address
        if key == "user":
            return user(address)
        if "TRUSTED_PROXIES" in given:
            raise ValueError(
                "NANOLIMIT['TRUSTED_PROXIES'] goes with the KEY 'client_ip' or 'user'; a key "
                "function of its own takes them itself: client_ip(trusted_proxies=...)"
            )
        return _key_of("KEY", key)

    def _callable(self, name: str, default: Any) -> Any:
        value = self._given.get(name, default)
        if isinstance(value, str):
            value = _imported(name, value)
        if name == "COST" and isinstance(value, int):
            return value
        if value is not None and not callable(value):
            raise ValueError(
                f"NANOLIMIT[{name!r}] must be a callable or the dotted path of one, "
                f"not {shown(value)}"
            )
        return value

    def _rules(self) -> list[Any]:
        rules = self._given.get("RULES", ())
        if not isinstance(rules, (list, tuple)):
            raise ValueError(
                f"NANOLIMIT['RULES'] must be a list of ('POST /login', '5/minute'), "
                f"not {shown(rules)}"
            )
        return list(rules)

    def _rule(self, number: int, rule: Any) -> Rule:
        name = f"['RULES'][{number}]"
        if isinstance(rule, Rule):
            return rule
        if not isinstance(rule, (list, tuple)) or not 2 <= len(rule) <= 3:
            raise ValueError(
                f"NANOLIMIT['RULES'][{number}] must be a Rule, ('POST /login', '5/minute') or "
                f"('POST /login', '5/minute', key), not {shown(rule)}"
            )
        pattern = rule[0]
        key = _key_of(name, rule[2]) if len(rule) == 3 else None
        _named(name, lambda: Rule(pattern, None))
        limiter = self._limiter(name, rule[1], pattern)
        return Rule(pattern, limiter, key)


def check_quota(limit: Any) -> None:
    """Refuse what is neither a limiter nor a quota: ValueError or TypeError."""
    if not is_limiter(limit):
        checked_quotas(limit, None)


def _key_of(name: str, key: Any) -> Any:
    where = _where(name)
    if isinstance(key, str):
        if key in ("client_ip", "user"):
            return client_ip() if key == "client_ip" else user()
        key = _imported(name, key)
    if not callable(key) or isinstance(key, type):
        raise ValueError(
            f"NANOLIMIT{where} must be a key function such as client_ip(), 'client_ip', 'user' "
            f"or the dotted path of one, not {shown(key)}"
        )
    return key


def _where(name: str) -> str:
    return name if name.startswith("[") else f"[{name!r}]"


def _imported(name: str, path: str) -> Any:
    """Return what a dotted path leads to."""
    where = _where(name)
    module, _, attribute = path.rpartition(".")
    if not module:
        raise ValueError(
            f"NANOLIMIT{where} must be a dotted path such as 'project.limits.{path}', "
            f"not {shown(path)}"
        )
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"NANOLIMIT{where} leads nowhere: {error}") from error


def _named(name: str, make: Callable[[], Any]) -> Any:
    """Say which entry it was that something is wrong with."""
    try:
        return make()
    except (ValueError, TypeError, NanolimitError) as error:
        raise ValueError(f"NANOLIMIT{_where(name)}: {error}") from error


_making = threading.RLock()


def _renew_lock() -> None:
    global _making
    _making = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_renew_lock)

_current: tuple[object, Setting] | None = None


def current(given: object) -> Setting:
    """Return the setting of this dict, made when it is first seen.

    So all handlers of a process (a test client is one) count together. Another dict, as a test's
    ``override_settings`` puts in its place, is another setting, with counts of its own; so is the
    first one when it comes back. Thread-safe.

    Raises:
        ValueError: As `Setting`.
    """
    global _current
    found = _current
    if found is not None and found[0] is given:
        return found[1]
    with _making:
        if _current is None or _current[0] is not given:
            _current = given, Setting(given)
        return _current[1]
