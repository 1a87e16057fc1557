"""The application of wsgi.py for ASGI servers.

    pip install nanolimit uvicorn
    uvicorn --workers 4 --app-dir examples asgi:app
    curl -i http://127.0.0.1:8000/alice

A check takes less than a microsecond and waits for nothing, so it needs no `await`. Its limit is
that of wsgi.py too: run both, and they share one count.
"""

from __future__ import annotations

import json
import math
import os
import time

from nanolimit import RateLimiter

limiter = RateLimiter(
    os.environ.get("LIMIT", "100/minute"),
    # A name: every process of this user that says "web" counts with us. uvicorn's workers import
    # this module each for itself, so memory without a name would not do.
    shared=os.environ.get("TABLE", "web"),
    # A deployment with another limit changes it for the workers that still run, too.
    on_mismatch="replace",
)


async def app(scope, receive, send):
    assert scope["type"] == "http"  # ASGI's way to say: no lifespan, no websockets
    user = scope["path"].strip("/") or "anonymous"
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    decision = limiter.check(user)
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    headers = [(b"content-type", b"application/json")]
    if not decision:
        headers.append((b"retry-after", b"%d" % math.ceil(decision.retry_after)))
    answer = {
        "user": user,
        "allowed": decision.allowed,
        "limit": decision.limit,
        "remaining": decision.remaining,
        "retry_after": decision.retry_after,
        "pid": os.getpid(),
        "before_ns": before_ns,
        "after_ns": after_ns,
    }
    body = json.dumps(answer).encode() + b"\n"
    headers.append((b"content-length", b"%d" % len(body)))
    await send(
        {
            "type": "http.response.start",
            "status": 200 if decision else 429,
            "headers": headers,
        }
    )
    await send({"type": "http.response.body", "body": body})
