"""Which part of a log line names the user."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Groups of the expression in log.py.
_GROUPS = {"ip": 1, "user": 2, "referer": 4, "user-agent": 5, "x-forwarded-for": 6}
# Other names people give them on the command line.
_ALIASES = {
    "remote_addr": "ip",
    "remote-addr": "ip",
    "remote_user": "user",
    "remote-user": "user",
    "referrer": "referer",
    "user_agent": "user-agent",
    "http_referer": "referer",
    "http_user_agent": "user-agent",
    "x_forwarded_for": "x-forwarded-for",
    "http_x_forwarded_for": "x-forwarded-for",
}
# The names they have in JSON logs (nginx, Caddy, Traefik, logstash), tried in this order.
_FIELDS = {
    "ip": (
        "ip",
        "remote_addr",
        "client_ip",
        "clientip",
        "remote_ip",
        "client",
        "request.client_ip",
        "request.remote_ip",
        "ClientHost",
    ),
    "user": ("user", "remote_user", "user_id", "username", "ClientUsername"),
    "referer": ("referer", "http_referer", "referrer"),
    "user-agent": ("user_agent", "http_user_agent", "user-agent", "agent"),
    "x-forwarded-for": ("x_forwarded_for", "http_x_forwarded_for", "x-forwarded-for"),
}


@dataclass(frozen=True)
class Key:
    """How to find the user: by a group of the combined format, by field names, or by an expression
    of one's own.
    """

    text: str
    group: int | None
    fields: tuple[str, ...]
    pattern: re.Pattern[str] | None

    def of_line(self, line: str) -> str | None:
        """What the expression's group matched in the raw line."""
        assert self.pattern is not None
        found = self.pattern.search(line)
        return None if found is None else found[1]

    def of_record(self, record: Mapping[str, object]) -> str | None:
        """The user of a JSON line; None if no field of the key holds text or a number."""
        for field in self.fields:
            value = record.get(field)
            if value is None and "." in field:
                value = _nested(record, field)
            if isinstance(value, str):
                return value
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return str(value)
        return None


def _nested(record: Mapping[str, object], path: str) -> object:
    value: object = record
    for step in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(step)
    return value


def parse(text: str) -> Key:
    """Read ``--key``: ``ip``, ``user``, a header field, a JSON field (dots go deeper), or a regular
    expression with one group.

    An opening parenthesis makes it an expression. ValueError says what is wrong with it.
    """
    if not text.strip():
        raise ValueError(
            "the key is empty; give ip, user, a field's name or a regular expression with one group"
        )
    if "(" in text:
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise ValueError(f"the regular expression {text!r} does not compile: {error}") from None
        if pattern.groups != 1:
            raise ValueError(
                f"the regular expression {text!r} has {pattern.groups} groups; it needs "
                "exactly one, around the user (write (?:...) for the others)"
            )
        return Key(text, None, (), pattern)
    if re.search(r"[\\^*+?\[\]|{})\s]", text):
        raise ValueError(
            f"the regular expression {text!r} has no group; it needs exactly one, around the user"
        )
    name = text.lower()
    name = _ALIASES.get(name, name)
    if name in _GROUPS:
        # What was typed comes first: it is the field's own name in this log.
        fields = dict.fromkeys((text, *_FIELDS[name]))
        return Key(name, _GROUPS[name], tuple(fields), None)
    return Key(text, None, (text,), None)
