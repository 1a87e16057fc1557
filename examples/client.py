"""Clients that wait their turn, and obey a server that says wait. Runs offline.

    pip install 'nanolimit[httpx,requests]'
    python examples/client.py

The server here allows 5 requests a second and tells the others when to come again.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import requests

from nanolimit import RateLimiter
from nanolimit.integrations.httpx import RateLimitTransport
from nanolimit.integrations.requests import RateLimitAdapter

guard = RateLimiter("5/second")


class Handler(BaseHTTPRequestHandler):
    """The API."""

    def do_GET(self):
        decision = guard.check(self.path)
        self.send_response_only(200 if decision else 429)
        if not decision:
            self.send_header("Retry-After", str(math.ceil(decision.retry_after)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args):
        """Say nothing."""


def show(title, get, url):
    """Ask eight times, in four threads, and tell what came of it."""
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(get, [url] * 8))
    seconds = time.monotonic() - began
    served = sum(answer.status_code == 200 for answer in answers)
    print(f"{title:<44} {served} served, {8 - served} refused, {seconds:.1f} s")


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,)).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with httpx.Client() as client:
            show("httpx as it is", client.get, f"{url}/a")
        # A tenth of a second more than the server's own window: requests are not all under way
        # for the same time, and what leaves a second apart may arrive closer.
        with httpx.Client(transport=RateLimitTransport("5/1.1s")) as client:
            show("at the server's pace", client.get, f"{url}/b")
        with httpx.Client(transport=RateLimitTransport(None, retries=5)) as client:
            show("as the server says, and again if refused", client.get, f"{url}/c")
        with requests.Session() as session:
            session.mount("http://", RateLimitAdapter("5/1.1s", retries=5))
            show("both, with requests", session.get, f"{url}/d")
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    main()
