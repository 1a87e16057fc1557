"""``nanolimit dashboard``: what it refuses, before it serves anything."""

from __future__ import annotations

import builtins
import socket
from pathlib import Path
from typing import Any

import pytest

from nanolimit import RateLimiter
from sharing import needs_shared

pytest.importorskip("click", reason="the extra nanolimit[cli] is not installed")
pytest.importorskip("rich", reason="the extra nanolimit[cli] is not installed")

from nanolimit.cli.command import nanolimit as group
from nanolimit.cli.command import run
from nanolimit.cli.dashboard import dashboard_command


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(group.commands, "dashboard", dashboard_command)
    monkeypatch.delenv("NANOLIMIT_DASHBOARD_TOKEN", raising=False)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = run(["dashboard", *arguments])
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    return code, " ".join(err.split())


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What uvicorn is given, without a server."""
    uvicorn = pytest.importorskip("uvicorn")
    given: list[Any] = []

    class Server:
        def __init__(self, config: Any) -> None:
            self.config = config

        def run(self, sockets: list[socket.socket]) -> None:
            given.append((self.config, sockets[0].getsockname()))
            raise KeyboardInterrupt

    monkeypatch.setattr(uvicorn, "Server", Server)
    return given


def test_help_tells_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["dashboard", "--help"]) == 0
    out = capsys.readouterr().out
    for word in ("--port", "8377", "--host", "127.0.0.1", "--token-file", "--read-only",
                 "NANOLIMIT_DASHBOARD_TOKEN", "Exit codes"):  # fmt: skip
        assert word in out


def test_a_table_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    code, said = refused(capsys)
    assert code == 2
    assert "Missing argument 'SHARED_FILE...'" in said


def test_without_uvicorn(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "uvicorn":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    code, said = refused(capsys, "api")
    assert code == 3
    assert "pip install 'nanolimit[dashboard]'" in said


@needs_shared
@pytest.mark.usefixtures("folder", "served")
class TestRefusals:
    def test_no_such_table(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        code, said = refused(capsys, "api")
        assert code == 1
        assert f"there is no table '{folder}/api'" in said

    def test_a_file_that_is_no_table(
        self, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        path = folder / "text"
        path.write_text("no table\n" * 1000)
        path.chmod(0o600)
        code, said = refused(capsys, str(path))
        assert code == 1
        assert str(path) in said

    def test_a_name_that_no_table_can_have(self, capsys: pytest.CaptureFixture[str]) -> None:
        code, said = refused(capsys, "a b\0")
        assert code == 2
        assert "SHARED_FILE" in said

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", ""])
    def test_elsewhere_than_the_loopback_without_a_token(
        self, capsys: pytest.CaptureFixture[str], host: str
    ) -> None:
        with RateLimiter("1/minute", shared="api"):
            code, said = refused(capsys, "api", "--host", host)
        assert code == 2
        assert "--token-file FILE or in NANOLIMIT_DASHBOARD_TOKEN" in said

    def test_a_name_that_means_another_machine_as_well(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        found = [(*family, ("127.0.0.1", 0)), (*family, ("192.0.2.1", 0))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *rest, **more: found)
        with RateLimiter("1/minute", shared="api"):
            code, said = refused(capsys, "api", "--host", "both.example")
        assert (code, "others can reach" in said) == (2, True)

    @pytest.mark.parametrize("port", ["-1", "65536", "http", "8377.5"])
    def test_a_port_that_is_none(self, capsys: pytest.CaptureFixture[str], port: str) -> None:
        code, said = refused(capsys, "api", f"--port={port}")
        assert code == 2
        assert "--port" in said

    @pytest.mark.parametrize("token", ["", "two words", "ä"])
    def test_a_token_that_is_none(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, token: str
    ) -> None:
        monkeypatch.setenv("NANOLIMIT_DASHBOARD_TOKEN", token)
        with RateLimiter("1/minute", shared="api"):
            code, said = refused(capsys, "api", "--host", "0.0.0.0")
        assert code == 2
        assert "NANOLIMIT_DASHBOARD_TOKEN: token" in said
        assert not token or token not in said

    def test_token_files(
        self,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
        tmp_path: Path,
    ) -> None:
        empty = tmp_path / "empty"
        empty.write_text("\n")
        with RateLimiter("1/minute", shared="api"):
            code, said = refused(capsys, "api", "--token-file", str(empty))
            assert (code, "is empty" in said, str(empty) in said) == (2, True, True)
            code, said = refused(capsys, "api", "--token-file", str(tmp_path / "none"))
            assert (code, "No such file" in said) == (1, True)
            monkeypatch.setenv("NANOLIMIT_DASHBOARD_TOKEN", "x")
            code, said = refused(capsys, "api", "--token-file", str(empty))
            assert (code, "two tokens" in said) == (2, True)

    def test_a_table_that_is_named_twice(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert refused(capsys, "api", "api")[0] == 2

    def test_two_tables_of_one_name(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        (folder / "sub").mkdir(mode=0o700)
        with (
            RateLimiter("1/minute", shared="api"),
            RateLimiter("1/minute", shared=folder / "sub" / "api"),
        ):
            code, said = refused(capsys, "api", f"{folder}/sub/api")
        assert (code, "two limiters are named 'api'" in said) == (2, True)

    def test_a_port_in_use(self, capsys: pytest.CaptureFixture[str]) -> None:
        with RateLimiter("1/minute", shared="api"):
            with socket.create_server(("127.0.0.1", 0)) as taken:
                port = taken.getsockname()[1]
                code, said = refused(capsys, "api", "--port", str(port))
        assert code == 1
        assert f"can't listen on 127.0.0.1 port {port}" in said
        assert "--port 0" in said

    def test_an_address_that_is_not_ours(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("NANOLIMIT_DASHBOARD_TOKEN", "secret")
        with RateLimiter("1/minute", shared="api"):
            code, said = refused(capsys, "api", "--host", "192.0.2.1")
        assert (code, "can't listen on 192.0.2.1" in said) == (1, True)


@needs_shared
def test_what_it_serves(
    capsys: pytest.CaptureFixture[str], folder: Path, served: list[Any], tmp_path: Path
) -> None:
    secret = tmp_path / "token"
    secret.write_text("s3cret\nnot this\n")
    with RateLimiter("1/minute", shared="api"):
        code, said = refused(
            capsys, "api", "--port", "0", "--host", "0.0.0.0", "--token-file", str(secret)
        )
    assert code == 0
    ((config, address),) = served
    assert address[0] == "0.0.0.0"
    assert f"http://0.0.0.0:{address[1]}/ (with the token" in said
    assert "s3cret" not in said
    assert config.access_log is False
    assert config.app._access.is_token("s3cret")


@needs_shared
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_the_loopback_needs_no_token(
    capsys: pytest.CaptureFixture[str], folder: Path, served: list[Any], host: str
) -> None:
    with RateLimiter("1/minute", shared="api"):
        code, said = refused(capsys, "api", "--port", "0", "--host", host)
    assert (code, "from this machine only" in said) == (0, True)
    assert not served[0][0].app._access.needs_token
