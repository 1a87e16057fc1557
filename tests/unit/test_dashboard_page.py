"""The dashboard's files: nothing inline, nothing from elsewhere, and uPlot as it was published."""

from __future__ import annotations

import hashlib
import re
from importlib.resources import files

import pytest

PACKAGE = files("nanolimit.dashboard")
OURS = ["index.html", "login.html", "app.js", "style.css", "icon.svg"]
ROW = re.compile(r"^\| `(?P<name>[\w.]+)` \| `[\w./]+` \| `(?P<digest>[0-9a-f]{128})` \|$", re.M)
SUMS = {
    "uplot.js": (
        "8df9b8c2bc60abbdd95c5cf260f46681f41def2623b6c1f9ed2cdf823a62797e"
        "2b8277c700c01926043560b4ec73a1ce5fed6d9c68e7905b9eadb73ca08da626"
    ),
    "uplot.css": (
        "c57618bc6a0fa8e8e13309299315930efec7be5cab93212acdce14485aff66d0"
        "580bb7a4944dc33410dc72a88c8f657344a49f7d9cdea9545c91d633271f6a7d"
    ),
    "LICENSE": (
        "26ad5134b24da27b0a962f68d6d7a72a206aa69c4cb376c494f32fd887cd5346"
        "d7c329ae88cc91978510807e395494c147539768312ddfe43e58f1f53be0cd55"
    ),
}


def text(name: str) -> str:
    return PACKAGE.joinpath("page", name).read_text("utf-8")


def test_uplot_is_what_was_published() -> None:
    """The sums are those of the npm package; its README says of which, and how to renew them."""
    for name, digest in SUMS.items():
        content = PACKAGE.joinpath("uplot", name).read_bytes()
        assert hashlib.sha512(content).hexdigest() == digest, name
    readme = PACKAGE.joinpath("uplot", "README.md").read_text("utf-8")
    assert dict(ROW.findall(readme)) == SUMS
    script = PACKAGE.joinpath("uplot", "uplot.js").read_text("utf-8")
    (version,) = re.findall(r"uplot-(\d+\.\d+\.\d+)\.tgz", readme)
    assert f"(v{version})" in script[:400]
    assert "MIT" in PACKAGE.joinpath("uplot", "LICENSE").read_text("utf-8")


@pytest.mark.parametrize("name", OURS)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    found = re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"^\s*//.*$", "", text(name), flags=re.M))
    assert set(found) <= {"http://www.w3.org"}  # the name of SVG, which nobody fetches
    assert "@import" not in text(name)


@pytest.mark.parametrize("name", ["index.html", "login.html"])
def test_nothing_is_inline(name: str) -> None:
    page = text(name)
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", page)
    for attributes, body in re.findall(r"<script([^>]*)>(.*?)</script>", page, re.S):
        assert "src=" in attributes
        assert body == ""


@pytest.mark.parametrize("name", ["index.html", "login.html"])
def test_addresses_are_relative(name: str) -> None:
    """So that it works below any prefix."""
    found = re.findall(r"(?:src|href|action)=\"([^\"]*)\"", text(name))
    assert found
    assert all(re.fullmatch(r"[a-z][\w.]*", address) for address in found)


def test_the_script_makes_no_html_of_text() -> None:
    forbidden = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
    )
    assert not re.search(forbidden, text("app.js"))


def test_every_element_that_the_script_asks_for_is_there() -> None:
    script, page = text("app.js"), text("index.html")
    ids = set(re.findall(r"\sid=\"([\w-]+)\"", page))
    asked = set(re.findall(r"\$\(\"([\w-]+)\"\)", script))
    assert asked
    assert asked <= ids
    fields = set(re.findall(r"\bfield\(\"(\w+)\"", script))
    assert fields == set(re.findall(r"data-field=\"(\w+)\"", page))


def test_what_a_reader_without_eyes_needs() -> None:
    page = text("index.html")
    assert '<html lang="en">' in page
    for landmark in ("<header>", "<main ", "<footer>", '<nav id="limiters" aria-label="Limiters"'):
        assert landmark in page
    assert re.search(r'id="connection" role="status" aria-live="polite"', page)
    for table in re.findall(r"<table.*?</table>", page, re.S):
        assert 'scope="col"' in table
    for described in re.findall(r"aria-(?:labelledby|describedby)=\"([\w-]+)\"", page):
        assert f'id="{described}"' in page
    assert '<label for="token">' in text("login.html")
