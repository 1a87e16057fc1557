"""A made-up day of a web shop's access log: seeded, with the shapes that a rate limit meets in
earnest.

People come in a daily rhythm, a few often and most once; a page brings its pictures and scripts in
a burst. A monitor asks every few seconds. One address walks through all products (the scraper), and
before dawn a few addresses try passwords. Addresses are from ranges set aside for documentation and
benchmarks (RFC 5737, 2544, 3849): nobody's.
"""

from __future__ import annotations

import math
from bisect import bisect
from datetime import datetime, timedelta
from itertools import accumulate
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

DAY_S = 86_400
SCRAPER_SHARE = 0.06
LOGIN_SHARE = 0.04
MONITOR_SHARE = 0.02
# What they do in a second, whatever the size of the log: they last longer in a larger one.
SCRAPER_PER_S = 2.2
LOGIN_PER_S = 1.6
LOGIN_ADDRESSES = 4
SCRAPER_START_S = 13 * 3600 + 20 * 60
LOGIN_START_S = 4 * 3600 + 10 * 60
SCRAPER_ADDRESS = "203.0.113.77"
MONITOR_ADDRESS = "192.0.2.10"

_WEBKIT = "AppleWebKit/537.36 (KHTML, like Gecko)"
_APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.2"
_AGENTS = (
    f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {_WEBKIT} Chrome/132.0.0.0 Safari/537.36",
    f"Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) {_APPLE} Safari/605.1.15",
    f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_2 like Mac OS X) {_APPLE} Mobile/15E148 Safari/604.1",
    f"Mozilla/5.0 (Linux; Android 10; K) {_WEBKIT} Chrome/132.0.0.0 Mobile Safari/537.36",
    "Mozilla/5.0 (X11; Linux x86_64; rv:134.0) Gecko/20100101 Firefox/134.0",
)
_ASSETS = (
    "/static/app.css",
    "/static/app.js",
    "/static/logo.svg",
    "/static/fonts/text.woff2",
    "/img/{}.webp",
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

# time in seconds of the day, and the line around it
_Event = tuple[float, str, str]


def lines(number: int, seed: int, start: datetime) -> Iterator[str]:
    """Exactly `number` lines in the combined format, in the order of their times, for the 24 hours
    from `start` (taken as UTC).

    The same arguments give the same lines.
    """
    random = Random(seed)
    scraper = int(number * SCRAPER_SHARE)
    login = int(number * LOGIN_SHARE)
    monitor = int(number * MONITOR_SHARE)
    events: list[_Event] = []
    events += _scraper(random, scraper)
    events += _login(random, login)
    events += _monitor(random, monitor)
    events += _people(random, number - scraper - login - monitor)
    events.sort(key=lambda event: event[0])
    last, text = -1, ""
    for time_s, address, rest in events:
        second = int(time_s)
        if second != last:
            last = second
            moment = start + timedelta(seconds=second)
            # Not %b: its names of the months follow the locale.
            month = _MONTHS[moment.month - 1]
            text = f"[{moment:%d}/{month}/{moment.year:04d}:{moment:%H:%M:%S} +0000]"
        yield f"{address} {text} {rest}"


def _scraper(random: Random, number: int) -> Iterator[_Event]:
    length_s = min(number / SCRAPER_PER_S, DAY_S - SCRAPER_START_S)
    for item in range(number):
        time_s = SCRAPER_START_S + length_s * (item + random.random()) / max(number, 1)
        size = random.randrange(18_000, 42_000)
        yield (
            time_s,
            f"{SCRAPER_ADDRESS} - -",
            f'"GET /product/{item + 1} HTTP/1.1" 200 {size} "-" "python-requests/2.32.3"',
        )


def _login(random: Random, number: int) -> Iterator[_Event]:
    length_s = min(number / (LOGIN_PER_S * LOGIN_ADDRESSES), DAY_S - LOGIN_START_S)
    for attempt in range(number):
        time_s = LOGIN_START_S + length_s * (attempt + random.random()) / max(number, 1)
        address = f"198.51.100.{20 + attempt % LOGIN_ADDRESSES}"
        status = "302 0" if random.random() < 0.0005 else "401 512"
        yield time_s, f"{address} - -", f'"POST /login HTTP/1.1" {status} "-" "{_AGENTS[0]}"'


def _monitor(random: Random, number: int) -> Iterator[_Event]:
    for probe in range(number):
        time_s = DAY_S * (probe + random.random() * 0.2) / max(number, 1)
        yield (
            time_s,
            f"{MONITOR_ADDRESS} - -",
            '"GET /healthz HTTP/1.1" 200 2 "-" "uptime-monitor/2.1"',
        )


def _people(random: Random, number: int) -> Iterator[_Event]:
    """Visits of people until there are `number` requests."""
    # About 25 requests a user on average; the most faithful come hundreds of times as often as the
    # rest.
    users = max(1, number // 25)
    weights = list(accumulate(1 / (rank + 8) ** 0.85 for rank in range(users)))
    rhythm = list(accumulate(_rhythm(minute / 60) for minute in range(DAY_S // 60)))
    left = number
    while left > 0:
        user = bisect(weights, random.random() * weights[-1])
        traits = Random(user)
        address = _address(user, traits)
        agent = _AGENTS[traits.randrange(len(_AGENTS))]
        name = f"user{user:05d}" if traits.random() < 0.3 else "-"
        clock_s = 60 * (bisect(rhythm, random.random() * rhythm[-1]) + random.random())
        referer = "-"
        first = True
        while left > 0 and clock_s < DAY_S:
            path = (
                f"/product/{int(random.paretovariate(0.7)) % 5000 + 1}"
                if random.random() < 0.7
                else "/"
            )
            page: list[tuple[float, str, int]] = [(clock_s, path, random.randrange(9_000, 45_000))]
            # The first page fills the browser's cache; later ones only bring pictures.
            for asset in _ASSETS if first else _ASSETS[-1:] * random.randrange(5):
                page.append(
                    (
                        clock_s + 0.2 + 1.5 * random.random(),
                        asset.format(random.randrange(9000)),
                        random.randrange(900, 90_000),
                    )
                )
            for time_s, target, size in page:
                if left > 0 and time_s < DAY_S:
                    left -= 1
                    status = 200 if random.random() < 0.97 else 404
                    yield (
                        time_s,
                        f"{address} - {name}",
                        f'"GET {target} HTTP/1.1" {status} {size} "{referer}" "{agent}"',
                    )
            referer = f"https://shop.example{path}"
            first = False
            if random.random() < 0.3:
                break
            clock_s += random.expovariate(1 / 35)


def _address(user: int, traits: Random) -> str:
    if traits.random() < 0.2:
        return f"2001:db8:{user >> 8:x}:{user & 255:x}::1"
    # 198.18.0.0/15, each user another address: an odd multiplier permutes the 2^17 of them.
    host = user * 40_503 % (1 << 17)
    return f"198.{18 + (host >> 16)}.{host >> 8 & 255}.{host & 255}"


def _rhythm(hour: float) -> float:
    """How busy the shop is: quiet at night, a hill before noon and a higher one in the evening."""
    return (
        0.08
        + 0.75 * math.exp(-(((hour - 11.5) / 3.2) ** 2))
        + math.exp(-(((hour - 20.0) / 2.2) ** 2))
    )
