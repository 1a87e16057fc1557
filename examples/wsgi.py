"""A WSGI application with one limit for all workers of the machine.

    pip install nanolimit gunicorn
    gunicorn --workers 4 --chdir examples wsgi:app
    curl -i http://127.0.0.1:8000/alice

The path says who asks, so that this needs no login; take a user id or an address. The answer tells
the decision, which process made it, and when: as read from the clock before and after.
"""

from __future__ import annotations

import json
import math
import os
import time

from nanolimit import RateLimiter

limiter = RateLimiter(
    os.environ.get("LIMIT", "100/minute"),
    # A name: every process of this user that says "web" counts with us. TABLE= (empty) takes memory
    # without a name, which the workers inherit: for gunicorn --preload.
    shared=os.environ.get("TABLE", "web") or True,
    # A deployment with another limit changes it for the workers that still run, too.
    on_mismatch="replace",
)


def app(environ, start_response):
    user = environ["PATH_INFO"].strip("/") or "anonymous"
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    decision = limiter.check(user)
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    headers = [("Content-Type", "application/json")]
    if not decision:
        headers.append(("Retry-After", str(math.ceil(decision.retry_after))))
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
    headers.append(("Content-Length", str(len(body))))
    start_response("200 OK" if decision else "429 Too Many Requests", headers)
    return [body]
