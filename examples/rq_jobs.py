"""RQ jobs that call an API no more often than it allows, all workers of the machine together.

pip install nanolimit rq
rq worker-pool --num-workers 4 --path examples api
python examples/rq_jobs.py 20             # twenty that wait where they are
python examples/rq_jobs.py 20 later       # twenty that come again later
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import timedelta

from redis import Redis
from rq import Queue, get_current_job

from nanolimit import RateLimiter

limiter = RateLimiter(
    os.environ.get("LIMIT", "5/second"),
    # A name: a worker makes a process for each job, and they all count together.
    shared=os.environ.get("TABLE", "rq"),
    on_mismatch="replace",
)


def call(number):
    """Wait for the turn, and then do it. The worker does nothing else meanwhile."""
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    if not limiter.acquire("api", timeout=60):
        return again(call, number, limiter.peek("api").retry_after)
    return done(number, before_ns)


def call_later(number):
    """Do it if there is room, else come again: the worker works on something else meanwhile."""
    before_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    decision = limiter.check("api")
    if not decision:
        return again(call_later, number, decision.retry_after)
    return done(number, before_ns)


def again(function, number, seconds):
    """Put it into the queue once more, after so many seconds. RQ's scheduler looks every second."""
    job = get_current_job()
    queue = Queue(job.origin, connection=job.connection)
    queue.enqueue_in(timedelta(seconds=seconds), function, number)


def done(number, before_ns):
    """Stand for the call of the API, and note when it was made, and where."""
    after_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    record = {"number": number, "pid": os.getpid(), "before_ns": before_ns, "after_ns": after_ns}
    get_current_job().connection.rpush("calls", json.dumps(record))


if __name__ == "__main__":
    import rq_jobs  # by this name the workers know it

    redis = Redis.from_url(os.environ.get("REDIS", "redis://localhost"))
    queue = Queue("api", connection=redis)
    function = rq_jobs.call_later if sys.argv[2:] == ["later"] else rq_jobs.call
    for number in range(int(sys.argv[1])):
        queue.enqueue(function, number)
    for _ in range(int(sys.argv[1])):
        name, record = redis.blpop("calls", timeout=60)
        print(record.decode())
    redis.close()
