"""Header fields and bodies: draft-ietf-httpapi-ratelimit-headers-11, RFC 9651, RFC 9457."""

from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanolimit import Decision, ManualClock, Quota, RateLimiter
from nanolimit.integrations.answer import (
    Announcement,
    prefers_text,
    refusal,
    retry_after,
    string,
)


def told(limiter: RateLimiter, decision: Decision, headers: Any = "draft") -> dict[str, str]:
    return dict(Announcement(limiter, headers).fields(decision))


def test_the_fields_of_the_draft() -> None:
    clock = ManualClock()
    limiter = RateLimiter("2/minute", name="api", clock=clock)
    assert told(limiter, limiter.check("me")) == {
        "RateLimit-Policy": '"api";q=2;w=60',
        "RateLimit": '"api";r=1;t=60',
    }
    clock.advance(12.5)
    limiter.check("me")
    denied = limiter.check("me")
    # Both tell of the same moment: when the first unit comes back.
    assert told(limiter, denied) == {
        "Retry-After": "48",
        "RateLimit-Policy": '"api";q=2;w=60',
        "RateLimit": '"api";r=0;t=48',
    }


def test_who_has_nothing_left_is_told_when_something_is() -> None:
    clock = ManualClock()
    limiter = RateLimiter("2/minute", name="api", clock=clock)
    limiter.check("me")
    clock.advance(20)
    # One is left, and all are in a minute; none is left, and one is in 40 s.
    assert told(limiter, limiter.peek("me"))["RateLimit"] == '"api";r=1;t=40'
    assert told(limiter, limiter.check("me"))["RateLimit"] == '"api";r=0;t=40'


def test_the_fields_that_are_older() -> None:
    clock = ManualClock()
    limiter = RateLimiter("2/minute", clock=clock)
    before = time.time()
    fields = told(limiter, limiter.check("me"), "x")
    after = time.time()
    assert set(fields) == {f"X-RateLimit-{name}" for name in ("Limit", "Remaining", "Reset")}
    assert (fields["X-RateLimit-Limit"], fields["X-RateLimit-Remaining"]) == ("2", "1")
    assert before + 60 <= int(fields["X-RateLimit-Reset"]) <= math.ceil(after + 60)


def test_both_and_none() -> None:
    limiter = RateLimiter("1/minute")
    allowed, denied = limiter.check("me"), limiter.check("me")
    assert len(told(limiter, allowed, "both")) == 5
    assert len(told(limiter, denied, "both")) == 6
    assert told(limiter, allowed, None) == {}
    assert set(told(limiter, denied, None)) == {"Retry-After"}


def test_the_raw_form_is_that_of_asgi() -> None:
    limiter = RateLimiter("1/minute")
    announcement = Announcement(limiter, "draft")
    assert announcement.raw(limiter.check("me")) == [
        (b"ratelimit-policy", b'"default";q=1;w=60'),
        (b"ratelimit", b'"default";r=0;t=60'),
    ]


def test_several_quotas_are_several_policies() -> None:
    clock = ManualClock()
    limiter = RateLimiter("1/second; 3/hour", name="api", clock=clock)
    limiter.check("me")
    fields = told(limiter, limiter.check("me"))
    assert fields["RateLimit-Policy"] == '"api-1/1s";q=1;w=1, "api-3/3600s";q=3;w=3600'
    assert fields["RateLimit"] == '"api-1/1s";r=0;t=1'
    assert Announcement(limiter).policy(limiter.quotas[1]) == "api-3/3600s"


def test_a_quota_of_a_key_stands_in_its_place() -> None:
    limiter = RateLimiter("1/minute", name="api")
    fields = told(limiter, limiter.check("me", quota=Quota(9, per=60)))
    assert fields["RateLimit-Policy"] == '"api";q=9;w=60'
    limiter.update(Quota(4, per=60))
    fields = told(limiter, limiter.check("you"))
    assert fields == {"RateLimit-Policy": '"api";q=4;w=60', "RateLimit": '"api";r=3;t=60'}


def test_what_it_said_last_is_not_said_of_others() -> None:
    limiter = RateLimiter("1/minute", name="api")
    announcement = Announcement(limiter)

    def policies(decision: Decision) -> str:
        return dict(announcement.fields(decision))["RateLimit-Policy"]

    assert policies(limiter.check("me")) == '"api";q=1;w=60'
    assert policies(limiter.check("you", quota=Quota(9, per=60))) == '"api";q=9;w=60'
    assert policies(limiter.check("me")) == '"api";q=1;w=60'
    limiter.update("4/minute")
    assert policies(limiter.check("me")) == '"api";q=4;w=60'


@pytest.mark.parametrize(
    ("per", "window"), [(0.5, ""), (1.5, ""), (1, ";w=1"), (604_800, ";w=604800")]
)
def test_a_window_is_told_in_whole_seconds_or_not_at_all(per: float, window: str) -> None:
    limiter = RateLimiter(1, per=per, name="api")
    assert told(limiter, limiter.check("me"))["RateLimit-Policy"] == f'"api";q=1{window}'


@pytest.mark.parametrize(
    ("per", "passed", "seconds"),
    [(60, 0, 60), (60, 59.5, 1), (60, 59.999_999, 1), (0.001, 0, 1), (60, 0.25, 60), (2, 1, 1)],
)
def test_retry_after_is_rounded_up_and_never_0(per: float, passed: float, seconds: int) -> None:
    clock = ManualClock()
    limiter = RateLimiter(1, per=per, clock=clock)
    limiter.allow("me")
    clock.advance(passed)
    assert retry_after(limiter.check("me")) == seconds


def test_it_is_right_to_come_back_then() -> None:
    clock = ManualClock()
    limiter = RateLimiter("3/minute", clock=clock)
    while (decision := limiter.check("me")).allowed:
        clock.advance(7.3)
    clock.advance(retry_after(decision))
    assert limiter.allow("me")


def test_the_problem() -> None:
    limiter = RateLimiter("2/minute", name="api", clock=ManualClock())
    limiter.check("me", 2)
    body = Announcement(limiter).body(limiter.check("me"))
    assert body.content_type == "application/problem+json"
    assert json.loads(body.content) == {
        "type": "https://iana.org/assignments/http-problem-types#quota-exceeded",
        "title": "Request cannot be satisfied as assigned quota has been exceeded",
        "status": 429,
        "detail": "At most 2 requests in 60 s; try again in 60 s.",
        "violated-policies": ["api"],
    }


def test_plain_text() -> None:
    limiter = RateLimiter("1/minute", clock=ManualClock())
    limiter.check("me")
    body = Announcement(limiter).body(limiter.check("me"), "text/plain")
    assert body.content_type.startswith("text/plain")
    assert body.content == b"At most 1 request in 60 s; try again in 60 s.\n"


def test_a_block() -> None:
    limiter = RateLimiter("1/minute", clock=ManualClock())
    limiter.block("me", 300)
    body = Announcement(limiter).body(limiter.check("me"), "text/plain")
    assert body.content == b"Blocked after too many requests; try again in 300 s.\n"


def test_other_refusals() -> None:
    assert json.loads(refusal(400, "so").content) == {
        "type": "about:blank",
        "title": "Bad Request",
        "status": 400,
        "detail": "so",
    }
    assert refusal(500, "so", "text/plain").content == b"so\n"


@pytest.mark.parametrize(
    ("accept", "text"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", True),
        ("text/*", True),
        ("TEXT/PLAIN; charset=utf-8", True),
        ("text/plain, application/json", False),
        ("text/plain;q=0.9, application/json;q=0.8", True),
        ("text/plain;q=0.5, */*", False),
        ("text/plain, */*;q=0.1", True),
        ("text/plain;q=0", False),
        ("text/plain;q=x", False),
        ("text/plain;q=nan", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/problem+json;q=0.2, text/plain;q=0.3, application/*", True),
        (";;;,,text/plain", True),
    ],
)
def test_who_wants_text(accept: str, text: bool) -> None:
    assert prefers_text(accept) is text


@given(st.text(max_size=200))
def test_any_accept_header(accept: str) -> None:
    assert prefers_text(accept) in (True, False)
    assert prefers_text(f"text/plain{accept}") in (True, False)


def test_a_name_is_a_structured_string() -> None:
    assert string('say "hi" \\') == '"say \\"hi\\" \\\\"'
    assert string("straße\r\nX: 1%") == '"stra%C3%9Fe%0D%0AX: 1%25"'


@given(
    st.text(min_size=1, max_size=40),
    st.lists(
        st.tuples(st.integers(1, 2**24), st.integers(1_000, 10**12)),
        min_size=1,
        max_size=4,
        unique_by=lambda quota: quota[1],
    ),
)
def test_others_read_what_is_written(name: str, quotas: list[tuple[int, int]]) -> None:
    """By a parser of RFC 9651 that is not ours."""
    http_sf = pytest.importorskip("http_sf")
    limiter = RateLimiter([Quota(limit, per=us / 1e6) for limit, us in quotas], max_keys=1)
    announcement = Announcement(limiter, "draft", name)
    decision = limiter.check("me")
    fields = dict(announcement.fields(decision))
    policies = http_sf.parse(fields["RateLimit-Policy"].encode(), tltype="list")
    assert [parameters["q"] for _, parameters in policies] == [q.limit for q in limiter.quotas]
    for quota, (_, parameters) in zip(limiter.quotas, policies, strict=True):
        assert parameters.get("w", quota.per) == quota.per
    [(said, parameters)] = http_sf.parse(fields["RateLimit"].encode(), tltype="list")
    assert said in [policy for policy, _ in policies]
    assert parameters["r"] == decision.remaining
    assert 0 <= parameters["t"] <= math.ceil(decision.quota.per)
    assert all(value.isprintable() and value.isascii() for value in fields.values())


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="headers must be 'draft', 'x', 'both' or None, not 'y'"):
        Announcement(RateLimiter(), "y")  # type: ignore[arg-type]
