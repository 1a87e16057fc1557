"""Flask-Limiter with one count for all workers of the machine.

    pip install "nanolimit[limits]" Flask-Limiter gunicorn
    gunicorn --workers 4 --chdir examples flask_limiter_app:app
    curl -i http://127.0.0.1:8000/alice

The import of nanolimit.compat.limits and the storage's URI are all that is not Flask-Limiter's.
"""

from __future__ import annotations

import os

from flask import Flask, request
from flask_limiter import Limiter

import nanolimit.compat.limits  # noqa: F401  # registers nanolimit://

app = Flask(__name__)
limiter = Limiter(
    # The path says who asks, so that this needs no login; take a user id or an address.
    lambda: request.path,
    app=app,
    storage_uri=f"nanolimit://{os.environ.get('TABLE', 'web')}",
    strategy=os.environ.get("STRATEGY", "moving-window"),
    headers_enabled=True,
)


@app.get("/<user>")
@limiter.limit(os.environ.get("LIMIT", "100/minute"))
def hello(user):
    return {"user": user, "allowed": True, "pid": os.getpid()}


@app.errorhandler(429)
def too_many(_error):
    return {"user": request.path.strip("/"), "allowed": False, "pid": os.getpid()}, 429
