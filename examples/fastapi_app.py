"""A FastAPI application with limits that all workers of the machine count together.

    pip install 'nanolimit[fastapi]' 'uvicorn[standard]'
    uvicorn --workers 4 --app-dir examples fastapi_app:app
    curl -i http://127.0.0.1:8000/items/7
    curl -i -X POST http://127.0.0.1:8000/login

A router has one limit for all that a client does there, the login one of its own. A client is an
address here; `header("X-API-Key")` or `user()` would tell clients apart by who they are.
"""

from __future__ import annotations

import os

from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

from nanolimit import RateLimiter
from nanolimit.integrations.fastapi import RESPONSES, RateLimitHeaders, client_ip, limit

TABLE = os.environ.get("TABLE", "web")

limiter = RateLimiter(
    os.environ.get("LIMIT", "100/minute"),
    # A name: uvicorn's workers import this module each for itself, and all count there.
    shared=TABLE,
    # A deployment with another limit changes it for the workers that still run, too.
    on_mismatch="replace",
)

# trusted_proxies: who may say for whom it asks. Behind nginx on the same machine: ["127.0.0.1"].
by_address = client_ip(trusted_proxies=[])

app = FastAPI()
# The report below is a Response of its own; with this its answer tells of the limit, too.
app.add_middleware(RateLimitHeaders)

router = APIRouter(
    dependencies=[Depends(limit(limiter, by_address))],
    responses=RESPONSES,  # for the documentation at /docs
)


@router.get("/items/{number}")
def item(number: int, request: Request):
    # The decision is at hand, to be shown or logged.
    return {
        "number": number,
        "remaining": request.state.ratelimit.remaining,
        "pid": os.getpid(),
    }


@router.get("/report")
async def report():
    async def lines():
        for number in range(3):
            yield f"line {number}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@router.websocket("/chat")
async def chat(websocket: WebSocket):
    # One connect is one request. The limiter is here to count messages as well, by any key.
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


app.include_router(router)


@app.post(
    "/login",
    dependencies=[Depends(limit("5/minute", by_address, shared=f"{TABLE}-login"))],
    responses=RESPONSES,
)
async def login():
    return {"pid": os.getpid()}


@app.get("/is-it-up")
async def is_it_up():
    return {"pid": os.getpid()}
