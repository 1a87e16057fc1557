"""Many real HTTP clients that ask a server of several workers for the same thing."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx

CLIENTS = 16
# A connection is given up after so many, so that all workers get some.
_PER_CONNECTION = 5


def statuses(port: int, path: str, requests: int) -> tuple[Counter[int], set[int]]:
    """Ask so often, all at once; how often which status came, and which processes answered."""

    def client(number: int) -> list[tuple[int, int]]:
        answers = []
        while number > 0:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as http:
                for _ in range(min(number, _PER_CONNECTION)):
                    response = http.get(path)
                    answers.append((response.status_code, response.json()["pid"]))
            number -= _PER_CONNECTION
        return answers

    share, rest = divmod(requests, CLIENTS)
    with ThreadPoolExecutor(CLIENTS) as pool:
        numbers = [share + (nth < rest) for nth in range(CLIENTS)]
        answers = [answer for each in pool.map(client, numbers) for answer in each]
    assert len(answers) == requests
    return Counter(status for status, _ in answers), {pid for _, pid in answers}
