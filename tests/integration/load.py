"""Many clients that ask over HTTP as fast as they get answers."""

from __future__ import annotations

import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from windows import Span

CLIENTS = 50

# A connection is given up after so many requests: otherwise the worker that was first to accept
# would keep all clients to itself.
_REQUESTS_PER_CONNECTION = 5
_TIMEOUT_S = 20.0


def now_ns() -> int:
    """The clock of shared tables, here and in the servers."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Record:
    """What clients were told about one user."""

    allowed: list[Span] = field(default_factory=list)
    denied: list[Span] = field(default_factory=list)
    unanswered: list[Span] = field(default_factory=list)
    """Requests that were sent and got no answer: who had them died."""
    pids: set[int] = field(default_factory=set)
    end_ns: int = 0


class Load:
    """`CLIENTS` threads; client n asks for user n modulo the number of users."""

    def __init__(self, port: int, users: list[str], seconds: float) -> None:
        self._port = port
        self._users = users
        self._seconds = seconds
        self._lock = threading.Lock()
        self.records = {user: Record() for user in users}

    def run(self) -> dict[str, Record]:
        """Ask for so many seconds; what was answered, by user."""
        self._end = time.monotonic() + self._seconds
        with ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(self._client, range(CLIENTS)))
        for record in self.records.values():
            record.end_ns = now_ns()
        return self.records

    def _client(self, number: int) -> None:
        user = self._users[number % len(self._users)]
        mine = Record()
        while time.monotonic() < self._end:
            self._connection(user, mine)
        with self._lock:
            record = self.records[user]
            record.allowed += mine.allowed
            record.denied += mine.denied
            record.unanswered += mine.unanswered
            record.pids |= mine.pids

    def _connection(self, user: str, mine: Record) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        try:
            for _ in range(_REQUESTS_PER_CONNECTION):
                # Without a connection nothing was sent, so nothing can have been counted.
                if connection.sock is None:
                    connection.connect()
                sent_ns = now_ns()
                try:
                    connection.request("GET", f"/{user}")
                    response = connection.getresponse()
                    answer = json.loads(response.read())
                except (ConnectionError, http.client.HTTPException):
                    mine.unanswered.append(Span(sent_ns, now_ns()))
                    return
                assert response.status == (200 if answer["allowed"] else 429)
                assert answer["user"] == user
                told = mine.allowed if answer["allowed"] else mine.denied
                told.append(Span(answer["before_ns"], answer["after_ns"]))
                mine.pids.add(answer["pid"])
                if time.monotonic() >= self._end:
                    return
        except ConnectionError:
            time.sleep(0.005)  # refused; a deadline that passes is a failure
        finally:
            connection.close()
