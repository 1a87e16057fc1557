"""A FastAPI application that shows on a page of its own what its limits do.

    pip install 'nanolimit[fastapi]' uvicorn
    export DASHBOARD_TOKEN=$(openssl rand -hex 24)
    uvicorn --workers 2 --app-dir examples dashboard_fastapi:app
    echo "http://127.0.0.1:8000/limits/?token=$DASHBOARD_TOKEN"

Without DASHBOARD_TOKEN the page answers to this machine alone. The table is shared, so that every
worker's page tells of all of them.
"""

from __future__ import annotations

import os

from fastapi import Depends, FastAPI

from nanolimit import RateLimiter, dashboard
from nanolimit.integrations.fastapi import client_ip, limit

limiter = RateLimiter(
    os.environ.get("LIMIT", "100/minute"),
    shared=os.environ.get("TABLE", "web"),
    on_mismatch="replace",
    # The 100 keys that are denied most; it costs something on denials only.
    track_top=100,
)

app = FastAPI()
app.mount("/limits", dashboard.app(limiter, token=os.environ.get("DASHBOARD_TOKEN") or None))


@app.get("/items/{number}", dependencies=[Depends(limit(limiter, client_ip()))])
def item(number: int):
    return {"number": number, "pid": os.getpid()}
