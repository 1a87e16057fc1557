"""The dashboard's page in a real browser, beside processes that use the table that it shows."""

from __future__ import annotations

import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import Browser, until
from dashboard_app import NAME, ODD_KEYS, make
from dashboard_server import COMMAND, Served, Worker
from nanolimit import RateLimiter, _core, shared
from sharing import memory_folder

NOTHING = "\N{EN DASH}"
LOST = "connection lost, retrying"
TOKEN = "a-token-of-this-test"


@pytest.fixture(scope="module", autouse=True)
def folder() -> Iterator[Path]:
    """A directory of tables for all tests here: one server and one browser serve them all."""
    if not _core.SHARED:
        pytest.skip("this platform has no shared tables")
    with memory_folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOLIMIT_DIR", str(path))
        yield path


@pytest.fixture(scope="module")
def limiter(folder: Path) -> Iterator[RateLimiter]:
    with make() as made:
        yield made


@pytest.fixture(scope="module")
def server(limiter: RateLimiter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with Served(tmp_path_factory.mktemp("server") / "log") as served:
        yield served


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture
def browser(started: Browser) -> Browser:
    started.emulate()
    started.requests()
    started.complaints()
    return started


@pytest.fixture
def page(browser: Browser, server: Served) -> Iterator[Browser]:
    """The page, live. It asks nobody but its server, and complains of nothing."""
    browser.open(server.address)
    browser.connection("live")
    yield browser
    assert browser.complaints() == []
    asked = browser.requests()
    assert any(address.endswith("/events") for address in asked)
    assert [each for each in asked if not each.startswith(f"{server.address}/")] == []


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_the_figures_are_those_of_stats(page: Browser, limiter: RateLimiter) -> None:
    """While processes are at work it moves; when they stop it stands where `stats` does."""
    workers = [Worker(NAME, seed) for seed in range(2)]
    try:
        until(lambda: page.field("denied_per_s") not in (NOTHING, "0"), "some are denied")
        until(lambda: page.field("allowed_per_s") not in (NOTHING, "0"), "some are allowed")
        first = number(page.field("allowed"))
        until(lambda: number(page.field("allowed")) > first, "it counts on")
        allowed, denied = map(sum, zip(*(worker.end() for worker in workers), strict=True))
    finally:
        for worker in workers:
            worker.kill()
    stats = limiter.stats()
    assert (stats.allowed, stats.denied) == (allowed, denied), "every check is counted, once"
    until(lambda: number(page.field("allowed")) == allowed, f"{allowed} allowed")
    until(lambda: page.field("denied_per_s") == "0", "nobody asks any more")
    assert number(page.field("denied")) == denied
    assert number(page.field("keys")) == stats.keys
    assert number(page.field("capacity")) == stats.capacity
    assert number(page.field("overflowed")) == stats.overflowed == 0
    assert number(page.field("evicted")) == stats.evicted
    share = 100 * denied / (allowed + denied)
    assert page.field("share").endswith(" %")
    assert float(page.field("share")[:-2]) == pytest.approx(share, abs=0.051)
    assert page.field("recent_share") == page.field("share"), "it saw all of it"
    assert page.field("memory") == f"{stats.memory_bytes / 2**20:,.1f} MiB".replace(".0 ", " ")
    assert page.texts("#quota li") == ["20 requests in any 60 seconds, counted exactly"]
    assert page.text("#name") == NAME

    top = limiter.top(20)
    assert shown_denials(page) == [each.denied for each in top]
    assert len(top) >= len(ODD_KEYS)
    assert page.texts("#top td.name .key")[0] == "203.0.113.77" == top[0].key
    assert all("ago" in text or text == "just now" for text in page.texts("#top td.last"))

    def chart_label() -> str:
        return str(page.find("#chart").get_attribute("aria-label"))

    assert "Denied: at most 0," not in chart_label()
    # and the past is there for who comes later
    page.driver.refresh()
    page.connection("live")
    page.run("document.getElementById('minutes').open = true")
    until(lambda: page.texts("#minutes tbody td"), "the minutes in numbers")
    assert "Denied: at most 0," not in chart_label()


def test_keys_do_no_harm(page: Browser) -> None:
    shown = page.texts("#top td.name .key")
    for key in ODD_KEYS[:3]:
        assert key in shown
    assert "a\\nbU+2028cU+202Ed" in shown
    assert page.texts("#top .hidden-char") == ["\\n", "U+2028", "U+202E"]
    assert page.run("return window.pwned === undefined")
    assert "pwned" not in page.driver.title
    assert (
        page.run("return document.querySelectorAll('main script, main img, main [onload]').length")
        == 0
    )
    # nor does a limiter's name
    assert "login <b>" in page.texts("#limiters .name")
    assert page.run("return document.querySelectorAll('#limiters b').length") == 0


def shown_denials(page: Browser) -> list[int]:
    return list(map(number, page.texts("#top td.denied b")))


def row(page: Browser, key: str, kind: str) -> str:
    """A selector of the row of this key."""
    place = page.run(
        "return [...document.querySelectorAll('#top tbody tr')].findIndex(r =>"
        " r.querySelector('.key').textContent === arguments[0] &&"
        " [...r.querySelectorAll('.kind')].map(k => k.textContent).join() === arguments[1])",
        key,
        kind,
    )
    assert place >= 0, page.texts("#top .name")
    return f"#top tbody tr:nth-child({place + 1})"


def test_a_key_is_reset_by_the_button_and_by_nothing_else(
    page: Browser, server: Served, limiter: RateLimiter
) -> None:
    for _ in range(25):  # a minute may have passed since
        limiter.allow(1)
        limiter.allow("1")
    assert not limiter.peek(1)
    until(lambda: shown_denials(page) == [each.denied for each in limiter.top(20)], "it is told")
    page.find(f"{row(page, '1', 'int')} button").click()
    assert page.run("return document.getElementById('confirm').open")
    assert page.text("#confirm-key") == "1int"
    page.find("#confirm-no").click()
    assert page.text("#result") == ""
    assert not limiter.peek(1)

    page.find(f"{row(page, '1', 'int')} button").click()
    page.find("#confirm-yes").click()
    until(lambda: "was reset" in page.text("#result"), "the result")
    said = page.text("#result")
    assert said == "1 was reset: its whole quota is free again."
    assert limiter.peek(1).remaining == 20
    assert not limiter.peek("1"), "the str of the same digits is another key"

    # what a link or an image in a mail could do
    with pytest.raises(urllib.error.HTTPError, match="405") as refused:
        urllib.request.urlopen(f"{server.address}/reset?limiter=0&id=1")
    refused.value.close()
    assert page.texts(f"{row(page, 'x' * 128 + '…', 'cut')} button") == []
    page.find(f"{row(page, '1', '')} button").send_keys("\ue007")  # Enter
    page.run(
        "document.getElementById('confirm')"
        ".addEventListener('close', () => { window.closed_once = true; }, {once: true})"
    )
    page.find("#confirm-no").send_keys("\ue00c")  # Escape
    until(lambda: page.run("return window.closed_once"), "closed, and what closing does was done")
    assert page.run("return document.activeElement.className") == "reset", "back where it was"
    assert page.text("#result") == said, "nothing was asked for"
    assert not limiter.peek("1")


def test_rows_stand_still_under_a_hand(page: Browser, limiter: RateLimiter) -> None:
    """Or the button that is pressed would be another key's by then."""
    until(lambda: len(page.texts("#top .name")) > 3, "rows")
    page.find("#top tbody tr:nth-child(3) button").send_keys("")  # in focus
    before = page.texts("#top .name")
    while limiter.top(1)[0].key != "1":
        for _ in range(100):
            limiter.allow("1")
    most = limiter.top(1)[0].denied
    until(lambda: most in shown_denials(page), "it is told")
    assert page.texts("#top .name") == before
    until(lambda: "order held" in page.text("#top-note"), "it is said")
    page.run("document.activeElement.blur()")
    page.emulate(width=1101)  # a pointer that stays where it was would hold it as well
    page.find("h1").click()
    until(lambda: shown_denials(page)[0] == most, "it is in its place")


def test_limiters_are_chosen(page: Browser) -> None:
    page.find("#limiters li:nth-child(2) button").click()
    assert page.text("#name") == "login <b>"
    assert page.texts("#quota li") == [
        "5 requests in any 60 seconds, counted exactly",
        "20 requests in any hour, counted exactly",
    ]
    assert page.text("#top-empty") == "Nobody was denied in the last 10 minutes."
    assert page.texts("#limiters [aria-current=true] .name") == ["login <b>"]
    page.driver.refresh()
    until(lambda: page.texts("#name") == ["login <b>"], "the same after a reload")


def test_the_chart_is_read_by_keys(page: Browser) -> None:
    until(lambda: page.run("return document.querySelectorAll('#chart canvas').length") == 1, "it")
    chart = page.find("#chart")
    chart.send_keys("\ue012")  # left
    first = page.text("#moment")
    assert first.count(":") == 2
    chart.send_keys("\ue012")
    until(lambda: page.text("#moment") != first, "the second before")
    assert "allowed" in page.text("#chart-said")
    chart.send_keys("\ue00c")
    until(lambda: page.text("#moment") == "now", "back to now")


def test_on_a_phone_nothing_is_beside_the_screen(page: Browser) -> None:
    for dark in (False, True):
        page.emulate(width=360, height=740, scale=2, dark=dark)
        until(
            lambda: page.run("return document.querySelector('#chart canvas').clientWidth") < 360,
            "the chart follows",
        )
        assert page.run("return document.documentElement.scrollWidth") == 360
        wide = page.run(
            "return [...document.querySelectorAll('main *, header *, nav *')].filter(e =>"
            " !e.closest('.unseen, .uplot, thead') && e.getBoundingClientRect().right > 360.5)"
            ".map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == []
        small = page.run(
            "return [...document.querySelectorAll('button:not([hidden]), summary')].filter(e =>"
            " e.offsetParent && e.getBoundingClientRect().height < 24).map(e => e.textContent)"
        )
        assert small == [], "too small for a finger"


CONTRAST = """
const channel = (v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
const light = (c) => {
  const [r, g, b] = c.match(/[\\d.]+/g).map(Number);
  return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
};
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor;
    if (c !== "rgba(0, 0, 0, 0)") return c;
  }
};
return [...document.querySelectorAll("body *")].filter((e) => e.offsetParent &&
  [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim())).map((e) => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
    return [e.textContent.trim().slice(0, 30), (a + 0.05) / (b + 0.05)];
  }).filter(([, ratio]) => ratio < 4.5);
"""


def test_light_and_dark(page: Browser) -> None:
    """As the system is, and legible in both: WCAG's 4.5 to 1 for every text."""
    grounds = []
    strokes = []
    for dark in (False, True):
        page.emulate(dark=dark)
        grounds.append(
            page.run("return getComputedStyle(document.documentElement).backgroundColor")
        )
        strokes.append(
            page.run("return getComputedStyle(document.querySelector('.sample .allowed')).stroke")
        )
        assert page.run(CONTRAST) == []
    assert grounds == ["rgb(245, 246, 248)", "rgb(16, 21, 27)"]
    assert len(set(strokes)) == 2


def test_it_can_be_told_without_colours(page: Browser) -> None:
    dashes = page.run(
        "return ['allowed', 'denied'].map(c =>"
        " getComputedStyle(document.querySelector(`.legend .${c}`)).strokeDasharray)"
    )
    assert dashes == ["none", "6px, 4px"]
    assert "allowed" in page.text(".legend")
    assert "denied" in page.text(".legend")


def test_a_server_that_stands_still(browser: Browser, server: Served) -> None:
    browser.open(server.address)
    browser.connection("live")
    server.signal(signal.SIGSTOP)
    try:
        browser.connection(LOST)
        assert LOST in browser.driver.title
        assert browser.find("#connection").get_attribute("aria-live") == "polite"
    finally:
        server.signal(signal.SIGCONT)
    browser.connection("live")


def test_a_server_that_is_killed_and_started_again(
    browser: Browser, server: Served, limiter: RateLimiter
) -> None:
    browser.open(server.address)
    browser.connection("live")
    server.end(signal.SIGKILL)
    browser.connection(LOST)
    assert number(browser.field("allowed")) == limiter.stats().allowed, "the last figures stay"
    limiter.allow("meanwhile")
    server.start()
    browser.connection("live")
    until(
        lambda: number(browser.field("allowed")) == limiter.stats().allowed, "what came meanwhile"
    )
    assert LOST not in browser.driver.title


def test_the_token_is_asked_for(browser: Browser, limiter: RateLimiter, tmp_path: Path) -> None:
    with Served(tmp_path / "log", token=TOKEN) as server:
        browser.open(server.address)
        assert browser.texts("#connection-text") == []
        browser.find("#token").send_keys("wrong\n")
        until(lambda: browser.texts(".said") == ["That token is not the right one."], "a refusal")
        browser.find("#token").send_keys(f"{TOKEN}\n")
        until(lambda: browser.texts("#connection-text") == ["live"], "the page")
        assert browser.driver.current_url == f"{server.address}/"
        assert browser.run("return document.cookie") == "", "no script reads it"
        browser.find("#sign-out").click()
        until(lambda: browser.texts("#token"), "the form again")

        browser.open(f"{server.address}/?token={TOKEN}")
        browser.connection("live")
        assert browser.driver.current_url == f"{server.address}/"
        assert TOKEN not in browser.run("return performance.getEntriesByType('navigation')[0].name")


def test_a_table_whose_limiters_keep_no_account(browser: Browser, tmp_path: Path) -> None:
    """It has room for its top offenders all the same, with nobody in it; and some are denied."""
    with (
        RateLimiter("2/minute", shared="plain") as limiter,
        Served(tmp_path / "log", *COMMAND, "plain", "--port", "{port}") as server,
    ):
        browser.open(server.address)
        browser.connection("live")
        assert browser.text("#top-empty") == "Nobody was denied in the last 10 minutes."
        until(lambda: browser.field("denied_per_s") == "0", "it has been read twice")
        for _ in range(5):
            limiter.allow("ann")
        until(lambda: browser.field("denied") == "3", "they are denied")
        said = "None to show: limiters that were made without track_top=100 don't tell."
        until(lambda: browser.text("#top-empty") == said, "it does not say that nobody is")


def test_a_table_that_goes_and_comes_again(browser: Browser, folder: Path, tmp_path: Path) -> None:
    """`nanolimit dashboard` looks at a table that its owner removes, and later makes anew."""
    with RateLimiter("2/minute", shared="passing") as first:
        for _ in range(5):
            first.allow("ann")
        with Served(tmp_path / "log", *COMMAND, "passing", "--port", "{port}") as server:
            browser.open(server.address)
            browser.connection("live")
            until(lambda: browser.field("denied") == "3", "the first table")
            assert browser.texts("#problem:not([hidden])") == []
            shared.remove("passing", force=True)
            until(lambda: "there is no table" in browser.text("#problem"), "it is gone")
            assert browser.find("#problem").is_displayed()
            assert browser.field("denied") == "3", "the last figures stay"
            with RateLimiter("7/minute", shared="passing") as second:
                second.allow("bob")
                until(lambda: browser.field("allowed") == "1", "the second table")
                quota = "7 requests in any 60 seconds, counted exactly"
                assert browser.texts("#quota li") == [quota]
                assert not browser.find("#problem").is_displayed()
