"""A limit in front of an ASGI application, shared by all workers of the server.

    pip install nanolimit uvicorn
    uvicorn --workers 4 --no-proxy-headers --app-dir examples middleware:app
    curl -i http://127.0.0.1:8000/
    curl -i -X POST http://127.0.0.1:8000/login

`--no-proxy-headers`: whose word is taken for a client's address is said in one place, below.
"""

from __future__ import annotations

import asyncio
import json
import os

from nanolimit import RateLimiter
from nanolimit.integrations.asgi import RateLimitMiddleware, Rule, client_ip

TABLE = os.environ.get("TABLE", "middleware")


async def application(scope, receive, send):
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.send", "text": "hello"})
        await send({"type": "websocket.close"})
        return
    if scope["type"] != "http":
        raise RuntimeError(f"no {scope['type']} here")
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": [(b"content-type", b"application/json")],
        }
    )
    if scope["path"] == "/stream":
        for number in range(5):
            piece = f"{number}\n".encode()
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b""})
        return
    decision = scope.get("state", {}).get("ratelimit")
    answer = {"pid": os.getpid(), "remaining": decision.remaining if decision else None}
    await send({"type": "http.response.body", "body": json.dumps(answer).encode() + b"\n"})


app = RateLimitMiddleware(
    application,
    # A name: every process of this user that says so counts with us.
    RateLimiter(os.environ.get("LIMIT", "100/minute"), shared=TABLE, on_mismatch="replace"),
    # Behind a proxy on this machine, its word is taken for whom it works for.
    client_ip(trusted_proxies=["127.0.0.1"]),
    rules=[
        Rule("/is-it-up", None),
        Rule("POST /login", RateLimiter("5/minute", shared=f"{TABLE}-login")),
    ],
)
