"""The dashboard in real servers: mounted, with open streams at the end, by the command."""

from __future__ import annotations

import http.client
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dashboard_server import COMMAND, Served
from nanolimit import RateLimiter
from server import EXAMPLES
from tools import at_hand

pytestmark = pytest.mark.usefixtures("tables")

TOKEN = "a-token-of-this-test"


class Reader:
    """A client with an open stream."""

    def __init__(self, port: int, path: str = "/events", token: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._connection.request("GET", path, headers=headers)
        self.answer = self._connection.getresponse()
        assert self.answer.status == 200, self.answer.read()
        assert self.answer.headers["Content-Type"].startswith("text/event-stream")

    def now(self) -> Any:
        """The next state."""
        event = ""
        while True:
            line = self.answer.readline().decode("ascii").rstrip("\n")
            assert line or event != "end"
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: ") and event == "now":
                return json.loads(line[6:])

    def rest(self) -> bytes:
        """Read to the end, and close; fails if it was cut off."""
        try:
            return self.answer.read()
        finally:
            self.close()

    def close(self) -> None:
        self.answer.close()
        self._connection.close()


def get(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_open_streams_do_not_keep_uvicorn_from_ending(
    tmp_path: Path, number: signal.Signals
) -> None:
    """It was started as a user would: with no time-out for its shutdown."""
    with Served(tmp_path / "log") as server:
        readers = [Reader(server.port) for _ in range(3)]
        for reader in readers:
            reader.now()
        began = time.monotonic()
        server.end(number, within_s=15)
        assert time.monotonic() - began < 10
        for reader in readers:
            reader.rest()  # the answers were ended, not cut
        assert "Traceback" not in server.log()
        assert "Cancel" not in server.log()


def test_a_worker_of_uvicorn_that_is_told_to_end(tmp_path: Path) -> None:
    command = (
        sys.executable, "-m", "uvicorn", "--workers", "2", "--app-dir", str(EXAMPLES),
        "--port", "{port}", "--no-access-log", "dashboard_fastapi:app",
    )  # fmt: skip
    with Served(tmp_path / "log", *command) as server:
        reader = Reader(server.port, "/limits/events")
        reader.now()
        server.end(signal.SIGINT, within_s=20)
        reader.rest()


def test_the_example_of_fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted, with a token; one worker's page tells of what another one did."""
    monkeypatch.setenv("DASHBOARD_TOKEN", TOKEN)
    monkeypatch.setenv("LIMIT", "3/minute")
    command = (
        sys.executable, "-m", "uvicorn", "--app-dir", str(EXAMPLES), "--port", "{port}",
        "--no-access-log", "dashboard_fastapi:app",
    )  # fmt: skip
    with Served(tmp_path / "log", *command) as server:
        assert [get(server.port, "/items/1")[0] for _ in range(5)] == [200] * 3 + [429] * 2
        assert get(server.port, "/limits/data.json")[0] == 401
        status, fields, _ = get(server.port, "/limits")
        assert (status, fields["location"].endswith("/limits/")) == (307, True)
        status, fields, _ = get(server.port, f"/limits/?token={TOKEN}")
        assert (status, fields["location"]) == (303, "./")
        assert "Path=/limits/;" in fields["set-cookie"]
        cookie = fields["set-cookie"].partition(";")[0]
        status, _, body = get(server.port, "/limits/", Cookie=cookie)
        assert (status, b'src="app.js"' in body) == (200, True)
        assert get(server.port, "/limits/app.js")[0] == 200
        (told,) = json.loads(get(server.port, "/limits/data.json", Cookie=cookie)[2])["limiters"]
        assert (told["counts"]["allowed"], told["counts"]["denied"]) == (3, 2)
        assert (told["top"][0]["key"], told["top"][0]["denied"]) == (["127.0.0.1"], 2)


BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)
SETTINGS = "SECRET_KEY = 'x'\nALLOWED_HOSTS = ['*']\nROOT_URLCONF = 'mysite.urls'\nUSE_TZ = True\n"


@pytest.mark.parametrize("framework", ["fastapi", "starlette", "django"])
def test_what_the_documentation_says_of_mounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, framework: str
) -> None:
    """Each example runs as it stands there."""
    document = at_hand(Path(__file__).parents[2] / "docs" / "dashboard.md").read_text("utf-8")
    (code,) = [code for code in BLOCK.findall(document) if f"from {framework}" in code]
    (tmp_path / "mounted.py").write_text(code)
    site = tmp_path / "mysite"
    site.mkdir()
    (site / "settings.py").write_text(SETTINGS)
    (site / "urls.py").write_text("urlpatterns = []\n")
    monkeypatch.setenv("DASHBOARD_TOKEN", TOKEN)
    name = "application" if framework == "django" else "app"
    command = (
        sys.executable, "-m", "uvicorn", "--app-dir", str(tmp_path), "--port", "{port}",
        "--no-access-log", f"mounted:{name}",
    )  # fmt: skip
    with Served(tmp_path / "log", *command) as server:
        assert get(server.port, "/limits/")[0] == 401
        assert get(server.port, "/limits/style.css")[0] == 200
        status, fields, _ = get(server.port, "/limits")
        assert status in (307, 308)
        assert fields["location"].endswith("limits/")
        assert get(server.port, "/elsewhere")[0] == 404
        reader = Reader(server.port, "/limits/events", token=TOKEN)
        assert reader.now()["limiters"][0]["name"] == ["web"]
        server.end(signal.SIGTERM, within_s=15)
        reader.rest()


def test_the_command_shows_a_table_and_resets_its_keys(tmp_path: Path) -> None:
    with RateLimiter("2/minute", shared="api", track_top=10) as limiter:
        for _ in range(5):
            limiter.allow("ann")
        with Served(tmp_path / "log", *COMMAND, "api", "--port", "{port}") as server:
            assert f"http://127.0.0.1:{server.port}/" in server.log()
            reader = Reader(server.port)
            (told,) = reader.now()["limiters"]
            assert (told["counts"]["allowed"], told["counts"]["denied"]) == (2, 3)
            assert told["can_reset"] is True
            (top,) = told["top"]
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request(
                "POST",
                "/reset",
                json.dumps({"limiter": 0, "id": top["id"]}),
                {"Content-Type": "application/json", "X-Nanolimit": "1"},
            )
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (200, {"reset": True})
            connection.close()
            assert limiter.peek("ann").remaining == 2
            code = server.end(signal.SIGINT, within_s=15)
            assert code == 0, server.log()
            reader.rest()
            assert "Traceback" not in server.log()


def test_the_command_with_a_token_on_all_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOLIMIT_DASHBOARD_TOKEN", TOKEN)
    with RateLimiter("2/minute", shared="api"):
        arguments = ("api", "--host", "0.0.0.0", "--port", "{port}", "--read-only")
        with Served(tmp_path / "log", *COMMAND, *arguments) as server:
            assert TOKEN not in server.log()
            assert get(server.port, "/data.json")[0] == 401
            status, _, body = get(server.port, "/data.json", Authorization=f"Bearer {TOKEN}")
            assert status == 200
            assert json.loads(body)["limiters"][0]["can_reset"] is False
            other = subprocess.run(
                [*COMMAND, "api", "--host", "0.0.0.0", "--port", str(server.port)],
                capture_output=True, text=True, timeout=60, check=False,
            )  # fmt: skip
            assert other.returncode == 1
            assert f"port {server.port}" in other.stderr
            assert "--port 0" in other.stderr
