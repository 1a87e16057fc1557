"""Take the pictures of docs/dashboard.md: the real page in headless Chromium, beside real traffic.

    PYTHONPATH=src python docs/dashboard_screenshots.py        # writes docs/images/dashboard-*.png

Ten minutes of traffic go through real limiters in a second or two, by a clock that is set by hand;
the last seconds are lived through, for the page is live. Needs uvicorn, selenium, Pillow, chromium
and chromedriver. Look at the pictures before you commit them.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

from nanolimit import RateLimiter, dashboard

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "integration"), str(ROOT / "tests")]
from browser import Browser, until  # noqa: E402 (where the tests keep it)

IMAGES = ROOT / "docs" / "images"
PAST_S = 600
HEAD_START_S = 6.0
MOST_BYTES = 150_000


class Scene:
    """A shop's API on a busy afternoon: a scraper, somebody who guesses passwords, a retry loop."""

    def __init__(self) -> None:
        # The past ends when it has been gone through, which takes a second or two.
        self.now_s = time.time() + HEAD_START_S - PAST_S
        clock = self.clock
        self.api = RateLimiter(
            "120/minute", name="api", max_keys=20_000, track_top=100, clock=clock
        )
        self.login = RateLimiter(
            "5/minute; 20/hour", name="login", max_keys=50_000, track_top=100, clock=clock
        )
        self.search = RateLimiter(
            "30/minute",
            name="search",
            algorithm="gcra",
            max_keys=50_000,
            track_top=100,
            clock=clock,
        )
        self.dice = random.Random(7)
        self.people = [f"user:{number}" for number in range(12_000)]
        self.age_s = 0.0

    def clock(self) -> float:
        return self.now_s

    def live(self, seconds: float) -> None:
        """Let so much time pass, with what is asked in it."""
        self.now_s += seconds
        self.age_s += seconds
        age_s, dice = self.age_s, self.dice
        people = 420 + 90 * math.sin(age_s / 130) + dice.gauss(0, 18)
        self._ask(self.api, self.people, people * seconds)
        self._ask(self.search, self.people, people * seconds / 9)
        self._ask(self.login, self.people, people * seconds / 70)
        if 150 <= age_s < 290:  # begins at once, ends at once
            self._ask(self.api, ["203.0.113.77"], (210 + dice.gauss(0, 14)) * seconds)
        if age_s >= 410:
            swell = min(1.0, (age_s - 410) / 60)
            some = [f"198.51.100.{number}" for number in range(20, 32)]
            self._ask(self.api, some, (95 * swell + dice.gauss(0, 6)) * seconds)
            self._ask(self.login, some, (24 * swell) * seconds)
        self._ask(self.api, [("acme", "nightly-sync")], 7 * seconds)
        self._ask(self.api, [4711], 4.6 * seconds)
        self._ask(self.api, ["key:<b>bold</b>"], 4.1 * seconds)
        self._ask(self.api, ["user:9\u202ekcatta"], 3.8 * seconds)
        self._ask(self.search, self.people[:6], 8 * seconds)

    def _ask(self, limiter: RateLimiter, keys: list[Any], number: float) -> None:
        whole = int(number) + (self.dice.random() < number % 1)
        for _ in range(max(0, whole)):
            limiter.allow(keys[int(self.dice.random() ** 1.6 * len(keys))])


def main() -> None:
    scene = Scene()
    app = dashboard.app(scene.api, scene.login, scene.search)
    begin_s = time.monotonic() + HEAD_START_S - PAST_S
    for second in range(PAST_S):
        scene.live(1.0)
        for source in app._sources:
            source.read(begin_s + second + 1)
    time.sleep(max(0.0, scene.now_s - time.time()))
    ended = threading.Event()

    def traffic() -> None:
        while not ended.wait(0.05):
            scene.live(time.time() - scene.now_s)

    threading.Thread(target=traffic, daemon=True).start()
    config = uvicorn.Config(app, port=0, log_level="warning", access_log=False)
    server = uvicorn.Server(config)
    threading.Thread(target=server.run, daemon=True).start()
    until(lambda: server.started, "the server")
    port = server.servers[0].sockets[0].getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    browser = Browser()
    browser.driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
    try:
        for name, width, scale, dark, fragment in (
            ("light", 1100, 1.0, False, "api"),
            ("dark", 1100, 1.0, True, "login"),
            ("phone", 360, 2.0, False, "api"),
        ):
            browser.emulate(width=width, height=800, scale=scale, dark=dark)
            browser.open("about:blank")
            browser.open(f"{address}#{fragment}")
            until(lambda: browser.texts("#connection-text") == ["live"], "the page")
            time.sleep(2.5)
            height = browser.run("return document.documentElement.scrollHeight")
            height = min(height, 1160 if width > 500 else 1330)
            browser.emulate(width=width, height=height, scale=scale, dark=dark)
            time.sleep(1.5)
            path = IMAGES / f"dashboard-{name}.png"
            browser.shot(path)
            shrink(path)
            print(path.relative_to(ROOT), f"{path.stat().st_size:,} bytes")
    finally:
        browser.close()
        ended.set()
        server.should_exit = True


def shrink(path: Path) -> None:
    """Keep it small: such a page has few colours."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(
            256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
        )
    few.save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        raise SystemExit(f"{path} has {path.stat().st_size:,} bytes: more than {MOST_BYTES:,}")


if __name__ == "__main__":
    main()
