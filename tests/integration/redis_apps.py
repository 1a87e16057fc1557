"""Applications whose limit is in a Redis: one for ASGI servers, one for WSGI servers.

Started by test_redis_in_apps.py, which says by REDIS_URL where it is.
"""

from __future__ import annotations

import os
from typing import Any

from fastapi import Depends, FastAPI, Request
from flask import Flask, g

from nanolimit.integrations.fastapi import limit
from nanolimit.integrations.flask import RateLimit
from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter

LIMIT = os.environ.get("LIMIT", "20/hour")
URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
# Generous, for busy test machines: what is tested is who decides, not how fast.
OPTIONS: dict[str, Any] = {"name": "apps", "nodes": 2, "timeout": 2.0}

asgi_app = FastAPI()
limited = limit(
    AsyncRedisRateLimiter(LIMIT, URL, **OPTIONS), key=lambda request: request.path_params["user"]
)


@asgi_app.get("/is-it-up")
async def asgi_is_it_up() -> dict[str, Any]:
    return {"pid": os.getpid()}


@asgi_app.get("/{user}", dependencies=[Depends(limited)])
async def asgi_hello(request: Request) -> dict[str, Any]:
    return {"pid": os.getpid(), "degraded": request.state.ratelimit.degraded}


wsgi_app = Flask(__name__)
ratelimit = RateLimit(wsgi_app)


@wsgi_app.get("/is-it-up")
def wsgi_is_it_up() -> dict[str, Any]:
    return {"pid": os.getpid()}


@wsgi_app.get("/<user>")
@ratelimit.limit(
    RedisRateLimiter(LIMIT, URL, **OPTIONS), key=lambda request: request.view_args["user"]
)
def wsgi_hello(user: str) -> dict[str, Any]:
    return {"pid": os.getpid(), "degraded": g.ratelimit.degraded}
