"""Celery tasks that call an API no more often than it allows, all workers of the machine together.

    pip install nanolimit 'celery[redis]'
    celery --workdir examples -A celery_app worker --concurrency 4
    python examples/celery_app.py 20             # twenty that wait where they are
    python examples/celery_app.py 20 later       # twenty that come again later

Celery's own rate_limit counts in each worker for itself. Here all of them count in one table.
"""

from __future__ import annotations

import json
import os
import sys
import time

from celery import Celery
from celery.exceptions import Ignore

from nanolimit import RateLimiter

broker = os.environ.get("BROKER", "redis://localhost")
app = Celery("example", broker=broker, backend=broker)
app.conf.update(
    # A worker takes no more than it works on: what it takes while it waits, others can't do.
    worker_prefetch_multiplier=1,
    task_acks_late=True,
    broker_connection_retry_on_startup=True,
)

limiter = RateLimiter(
    os.environ.get("LIMIT", "5/second"),
    # A name: all workers of this user count together, and so do their child processes.
    shared=os.environ.get("TABLE", "celery"),
    on_mismatch="replace",
)


@app.task(name="call", bind=True)
def call(task, number):
    """Wait for the turn, and then do it. The process does nothing else meanwhile."""
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if not limiter.acquire("api", timeout=60):
        again(task, limiter.peek("api").retry_after)
    return done(number, before_ns)


@app.task(name="call_later", bind=True)
def call_later(task, number):
    """Do it if there is room, else come again: the process works on something else meanwhile."""
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    decision = limiter.check("api")
    if not decision:
        again(task, decision.retry_after)
    return done(number, before_ns)


def again(task, seconds):
    """Send the running task once more, after so many seconds, and end it here.

    `task.retry` would do it, and count it as one of the task's `max_retries`, which are for
    failures. Its id stays, its arguments, and what waits for it.
    """
    task.signature_from_request(countdown=seconds, retries=task.request.retries).apply_async()
    raise Ignore


def done(number, before_ns):
    """Stand for the call of the API. The answer tells when it was made, and where."""
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return {"number": number, "pid": os.getpid(), "before_ns": before_ns, "after_ns": after_ns}


if __name__ == "__main__":
    task = call_later if sys.argv[2:] == ["later"] else call
    results = [task.delay(number) for number in range(int(sys.argv[1]))]
    for result in results:
        print(json.dumps(result.get(timeout=60)))
