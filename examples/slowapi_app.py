"""slowapi with one count for all workers of the machine.

    pip install "nanolimit[limits]" slowapi fastapi uvicorn
    uvicorn --workers 4 --app-dir examples slowapi_app:app
    curl -i http://127.0.0.1:8000/alice

The import of nanolimit.compat.limits and the storage's URI are all that is not slowapi's.
"""

from __future__ import annotations

import os

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from slowapi import Limiter
from slowapi.errors import RateLimitExceeded

import nanolimit.compat.limits  # noqa: F401  # registers nanolimit://


def who(request: Request) -> str:
    """The path says who asks, so that this needs no login; take a user id or an address."""
    return request.url.path


app = FastAPI()
limiter = app.state.limiter = Limiter(
    who,
    storage_uri=f"nanolimit://{os.environ.get('TABLE', 'web')}",
    strategy=os.environ.get("STRATEGY", "moving-window"),
    headers_enabled=True,
)


@app.get("/{user}")
@limiter.limit(os.environ.get("LIMIT", "100/minute"))
async def hello(request: Request, response: Response, user: str):
    return {"user": user, "allowed": True, "pid": os.getpid()}


@app.exception_handler(RateLimitExceeded)
async def too_many(request: Request, error: RateLimitExceeded):
    answer = {"user": request.url.path.strip("/"), "allowed": False, "pid": os.getpid()}
    return JSONResponse(answer, status_code=429)
