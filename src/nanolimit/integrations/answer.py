"""What a limit tells a client: header fields and the body of a 429.

- ``RateLimit`` and ``RateLimit-Policy`` of draft-ietf-httpapi-ratelimit-headers-11, serialised as
  structured fields (RFC 9651);
- ``X-RateLimit-Limit``, ``-Remaining`` and ``-Reset`` (seconds since 1970), for clients that know
  no better;
- ``Retry-After`` in seconds (RFC 9110, 10.2.3), with every denial;
- the problem type ``quota-exceeded`` of the same draft as problem+json (RFC 9457), or plain text
  for those who ask for that.
"""

from __future__ import annotations

import json
import math
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from nanolimit.clock import NS_PER_SECOND, shown

if TYPE_CHECKING:
    from typing import Literal

    from nanolimit._core import Decision
    from nanolimit.quota import Quota
    from nanolimit.remote import AnyLimiter

    Kind = Literal["draft", "x", "both"]

KINDS = ("draft", "x", "both")
QUOTA_EXCEEDED = "https://iana.org/assignments/http-problem-types#quota-exceeded"
_TITLE = "Request cannot be satisfied as assigned quota has been exceeded"
_UNNAMED = re.compile(r"limiter-[0-9]+")
_MOST_NAMES = 1_000  # quotas of keys and calls may be any number
_MOST_SECONDS = 10**9  # thirty years; RFC 9651 gives integers fifteen digits


def string(text: str) -> str:
    """Serialise a String of RFC 9651, 4.1.6; what it can't hold is written as ``%XX``."""
    printable = "".join(
        character
        if " " <= character <= "~" and character != "%"
        else "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
        for character in text
    )
    escaped = printable.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def whole_seconds(seconds: float) -> int:
    """Round up, as a client that waits so long must not come too early."""
    return math.ceil(min(seconds, _MOST_SECONDS))


def retry_after(decision: Decision) -> int:
    """Return the seconds of a Retry-After: whole ones, and never 0."""
    return max(1, whole_seconds(decision.retry_after))


_NAMES = {
    name.lower().encode(): name
    for name in (
        "Retry-After",
        "RateLimit",
        "RateLimit-Policy",
        "X-RateLimit-Limit",
        "X-RateLimit-Remaining",
        "X-RateLimit-Reset",
    )
}


class Body(NamedTuple):
    """The body of an answer, and its media type."""

    content_type: str
    content: bytes


class _Constant(NamedTuple):
    """What is the same in all answers with one binding quota."""

    binding: Quota
    quotas: tuple[Quota, ...]
    window_s: int  # rounded up
    name: bytes  # serialised
    policies: tuple[bytes, bytes]
    limit: tuple[bytes, bytes]


class Announcement:
    """What is told of one limiter's decisions, in one kind of header fields.

    Args:
        limiter: Whose decisions.
        headers: ``"draft"``, ``"x"``, ``"both"`` or None.
        name: What clients know the policy by; by default the limiter's name if it was given one,
            else ``"default"``. Of several quotas each has its own: ``"default-10/1s"``.

    Raises:
        ValueError: There is no such kind of headers.
    """

    __slots__ = ("_draft", "_last", "_name", "_said", "_x", "limiter", "silent")

    def __init__(
        self, limiter: AnyLimiter, headers: Kind | None = "draft", name: str | None = None
    ) -> None:
        check_kind(headers)
        if name is None:
            name = "default" if _UNNAMED.fullmatch(limiter.name) else limiter.name
        self.limiter: AnyLimiter = limiter
        self._name = name
        self._draft = headers in ("draft", "both")
        self._x = headers in ("x", "both")
        self.silent: bool = headers is None  # on allowed answers
        # By the limiter's quotas and the binding one: the first part of `RateLimit`, and the whole
        # `RateLimit-Policy`.
        self._said: dict[tuple[tuple[Quota, ...], Quota], tuple[str, str, str]] = {}
        # What was said last: most answers say it again.
        self._last: _Constant | None = None

    def policy(self, quota: Quota) -> str:
        """Return the name of a quota's policy."""
        return self._policy(self.limiter.quotas, quota)[0]

    def _policy(self, quotas: tuple[Quota, ...], binding: Quota) -> tuple[str, str, str]:
        """Return the binding quota's name, that name serialised, and all policies."""
        found = self._said.get((quotas, binding))
        if found is None:
            # A quota of a key or a call stands in the place of the one with the same window.
            told = [binding if quota.window_ns == binding.window_ns else quota for quota in quotas]
            names = [
                self._name if len(quotas) == 1 else f"{self._name}-{quota.limit}/{quota.per:g}s"
                for quota in told
            ]
            members = []
            for name, quota in zip(names, told, strict=True):
                member = f"{string(name)};q={quota.limit}"
                whole, rest = divmod(quota.window_ns, NS_PER_SECOND)
                # The draft has whole seconds only; a window of half of one is left unsaid.
                members.append(member if rest else f"{member};w={whole}")
            own = names[told.index(binding)] if binding in told else self._name
            found = own, string(own), ", ".join(members)
            if len(self._said) >= _MOST_NAMES:
                self._said.clear()
            self._said[quotas, binding] = found
        return found

    def fields(self, decision: Decision) -> list[tuple[str, str]]:
        """Return the header fields of an answer, with Retry-After if it was denied."""
        return [(_NAMES[name], value.decode()) for name, value in self.raw(decision)]

    def raw(self, decision: Decision) -> list[tuple[bytes, bytes]]:
        """Return the same as ASGI has them: bytes, names in lower case."""
        binding = decision.quota
        last = self._last
        # Quotas are the same tuple's, or equal ones, until somebody changes them.
        if last is None or last.binding is not binding or last.quotas != self.limiter.quotas:
            last = self._last = self._constant(binding)
        remaining = decision.remaining
        fields: list[tuple[bytes, bytes]] = []
        if decision.allowed:
            # A stamp that was rounded up to its tick would make a minute 61 s.
            after_s = decision.reset_after if remaining else decision.refill_after
            reset_s = min(math.ceil(after_s), last.window_s)
        else:
            # Both tell of the same moment, as the draft asks for.
            reset_s = retry_after(decision)
            fields.append((b"retry-after", b"%d" % reset_s))
        if self._draft:
            fields.append(last.policies)
            fields.append((b"ratelimit", b"%b;r=%d;t=%d" % (last.name, remaining, reset_s)))
        if self._x:
            fields += (
                last.limit,
                (b"x-ratelimit-remaining", b"%d" % remaining),
                (b"x-ratelimit-reset", b"%d" % math.ceil(time.time() + reset_s)),
            )
        return fields

    def _constant(self, binding: Quota) -> _Constant:
        quotas = self.limiter.quotas
        _, name, policies = self._policy(quotas, binding)
        return _Constant(
            binding,
            quotas,
            -(-binding.window_ns // NS_PER_SECOND),
            name.encode(),
            (b"ratelimit-policy", policies.encode()),
            (b"x-ratelimit-limit", b"%d" % binding.limit),
        )

    def body(self, decision: Decision, accept: str = "") -> Body:
        """Return the body of a 429, in the form that the client's Accept header prefers."""
        quota = decision.violated or decision.quota
        unit = "request" if quota.limit == 1 else "requests"
        wait = retry_after(decision)
        detail = (
            f"Blocked after too many requests; try again in {wait} s."
            if decision.blocked
            else f"At most {quota.limit} {unit} in {quota.per:g} s; try again in {wait} s."
        )
        if prefers_text(accept):
            return Body("text/plain; charset=utf-8", f"{detail}\n".encode())
        return problem(
            429,
            _TITLE,
            detail,
            type=QUOTA_EXCEEDED,
            **{"violated-policies": [self.policy(decision.quota)]},
        )


def problem(status: int, title: str, detail: str, **more: object) -> Body:
    """Return an answer's body as problem+json: RFC 9457."""
    about = {"type": more.pop("type", "about:blank"), "title": title, "status": status}
    return Body(
        "application/problem+json", json.dumps({**about, "detail": detail, **more}).encode()
    )


def refusal(status: int, detail: str, accept: str = "") -> Body:
    """Return the body of an answer that is no 429: 400, 500 or 503."""
    title = _TITLES[status]
    if prefers_text(accept):
        return Body("text/plain; charset=utf-8", f"{detail}\n".encode())
    return problem(status, title, detail)


_TITLES = {400: "Bad Request", 500: "Internal Server Error", 503: "Service Unavailable"}


def check_kind(headers: object) -> None:
    """Refuse what is no kind of header fields."""
    if headers is not None and headers not in KINDS:
        raise ValueError(f"headers must be 'draft', 'x', 'both' or None, not {shown(headers)}")


def prefers_text(accept: str) -> bool:
    """Say whether a client would rather have plain text than JSON: RFC 9110, 12.5.1.

    A header that can't be read asks for nothing.
    """
    if "text/" not in accept.lower():
        return False
    best = {"text": 0.0, "json": 0.0}
    # The most specific range counts: a type over type/*, that over */*.
    rank = {"text": -1, "json": -1}
    for part in accept[:4096].split(","):
        media, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            name, _, value = parameter.partition("=")
            if name.strip() == "q":
                try:
                    weight = float(value)
                except ValueError:
                    weight = 0.0
                if not 0 <= weight <= 1:
                    weight = 0.0
        for kind, ranges in _RANGES.items():
            if media in ranges and ranges.index(media) > rank[kind]:
                rank[kind] = ranges.index(media)
                best[kind] = weight
    return best["text"] > best["json"]


_RANGES = {
    "text": ("*/*", "text/*", "text/plain"),
    "json": ("*/*", "application/*", "application/json", "application/problem+json"),
}
