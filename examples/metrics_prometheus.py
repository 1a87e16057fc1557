"""A WSGI application whose limits Prometheus scrapes: any worker tells of all of them.

    pip install 'nanolimit[prometheus]' gunicorn
    gunicorn --workers 4 --chdir examples metrics_prometheus:app
    curl http://127.0.0.1:8000/alice
    curl http://127.0.0.1:8000/metrics

The counters are those of the shared table, so a scrape says the same whichever worker answers it,
and needs no directory of prometheus_client's multi-process mode. `limiter.track_top` names the
users that are denied most; they become labels, at most ten.
"""

from __future__ import annotations

import json
import math
import os

from prometheus_client import CollectorRegistry, make_wsgi_app

from nanolimit import RateLimiter
from nanolimit.metrics import prometheus

limiter = RateLimiter(
    os.environ.get("LIMIT", "100/minute"),
    shared=os.environ.get("TABLE", "web") or True,
    on_mismatch="replace",
    track_top=100,
)

# A registry of its own: the default one also tells of the process that answers, which is another
# one at each scrape.
registry = CollectorRegistry()
prometheus.register(limiter, registry=registry)
metrics = make_wsgi_app(registry)


def app(environ, start_response):
    if environ["PATH_INFO"] == "/metrics":
        return metrics(environ, start_response)
    user = environ["PATH_INFO"].strip("/") or "anonymous"
    decision = limiter.check(user)
    headers = [("Content-Type", "application/json")]
    if not decision:
        headers.append(("Retry-After", str(math.ceil(decision.retry_after))))
    body = json.dumps({"user": user, "allowed": decision.allowed, "pid": os.getpid()}).encode()
    headers.append(("Content-Length", str(len(body))))
    start_response("200 OK" if decision else "429 Too Many Requests", headers)
    return [body]
