"""A headless Chromium by chromedriver: Debian's, or Google Chrome on a machine of a CI."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tools import missing

T = TypeVar("T")

LONG_S = 60.0
_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def until(wanted: Callable[[], T], what: str, within_s: float = LONG_S) -> T:
    """Ask again and again until the answer is true; the answer."""
    deadline = time.monotonic() + within_s
    while True:
        found = wanted()
        if found:
            return found
        if time.monotonic() > deadline:
            pytest.fail(f"not within {within_s:g} s: {what}; it is {found!r}")
        time.sleep(0.1)


class Browser:
    """One window. What it asked for and complained of is kept until `requests` and `complaints`."""

    def __init__(self) -> None:
        try:
            from selenium import webdriver
            from selenium.webdriver.chrome.options import Options
            from selenium.webdriver.chrome.service import Service
        except ImportError:
            missing("selenium")
        binary = next(filter(None, map(shutil.which, _BROWSERS)), None)
        if binary is None:
            missing("chromium")
        folder = os.environ.get("CHROMEWEBDRIVER")
        driver = shutil.which("chromedriver", path=folder) if folder else None
        driver = driver or shutil.which("chromedriver")
        if driver is None:
            missing("chromedriver (Debian: chromium-driver)")
        options = Options()
        options.binary_location = binary
        for argument in (
            "--headless=new",
            "--no-sandbox",  # as root there is no other way; it opens our own page alone
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--window-size=1100,1000",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver: Any = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_script_timeout(LONG_S)

    def open(self, address: str) -> None:
        self.driver.get(address)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def texts(self, selector: str) -> list[str]:
        """What is to be read in each element that this selects."""
        found: list[str] = self.run(
            "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
        )
        return found

    def text(self, selector: str) -> str:
        (found,) = self.texts(selector)
        return found.replace("\u00a0", " ")

    def field(self, name: str) -> str:
        return self.text(f'[data-field="{name}"]')

    def find(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def connection(self, text: str, within_s: float = LONG_S) -> None:
        """Wait until the page says this of its connection."""
        until(
            lambda: self.text("#connection-text") == text,
            f"{text!r} (it says {self.texts('#connection-text')})",
            within_s,
        )

    def emulate(
        self, *, width: int = 1100, height: int = 1000, scale: float = 1, dark: bool = False
    ) -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {
                "width": width,
                "height": height,
                "deviceScaleFactor": scale,
                "mobile": width < 500,
            },
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]},
        )

    def requests(self) -> list[str]:
        """The addresses that the page asked for since it was last asked."""
        found = []
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                found.append(message["params"]["request"]["url"])
        return found

    def complaints(self) -> list[str]:
        """What stands in the console since it was last asked."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def shot(self, path: Path) -> None:
        self.driver.save_screenshot(str(path))

    def close(self) -> None:
        self.driver.quit()
