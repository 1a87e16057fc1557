"""A Flask application with one limit for all workers of the machine.

    pip install "nanolimit[flask]" gunicorn
    gunicorn --workers 4 --chdir examples flask_app:app
    curl -i http://127.0.0.1:8000/alice
    curl -i --data '' http://127.0.0.1:8000/login

The path says who asks, so that this needs no login; take a user id or an address. The answer tells
the decision, which process made it, and when: as read from the clock before and after.
"""

from __future__ import annotations

import os
import time

from flask import Flask, g, request

from nanolimit.integrations.flask import RateLimit, client_ip

app = Flask(__name__)
app.config["NANOLIMIT_QUOTA"] = os.environ.get("LIMIT", "100/minute")
# A name: every process of this user that says "web" counts with us. TABLE= (empty) takes memory
# without a name, which the workers inherit: for gunicorn --preload.
app.config["NANOLIMIT_SHARED"] = TABLE = os.environ.get("TABLE", "web") or True


@app.before_request
def look_at_the_clock():
    g.before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def user(request):
    return request.path.strip("/")


# What stands before this line runs before the limit.
ratelimit = RateLimit(app, key=user)


def answer(decision):
    return {
        "user": user(request),
        "allowed": decision.allowed,
        "limit": decision.limit,
        "remaining": decision.remaining,
        "retry_after": decision.retry_after,
        "pid": os.getpid(),
        "before_ns": g.before_ns,
        "after_ns": time.clock_gettime_ns(time.CLOCK_BOOTTIME),
    }


@app.get("/<name>")
def index(name):
    return answer(g.ratelimit)


@app.post("/login")
@ratelimit.limit("5/minute", client_ip(), shared=TABLE if TABLE is True else f"{TABLE}-login")
def login():
    return answer(g.ratelimit)


@app.errorhandler(429)
def too_many(error):
    # Without this function the answer is problem+json. The header fields are the same.
    return answer(error.decision), 429
