"""TLS with an authority of one's own: a server, a Cluster, and certificates that do not fit."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("redis")

import redis
import redis.asyncio
from redis.asyncio.connection import RedisSSLContext

from nanolimit.redis import AsyncRedisRateLimiter, RedisRateLimiter, StoreUnavailableError
from redis_server import RedisCluster, RedisServer, free_port
from tools import missing

PATIENT_S = 20.0


class Authority:
    """Signs certificates; all of it in one directory."""

    def __init__(self, directory: Path, openssl: str) -> None:
        self._directory = directory
        self._openssl = openssl
        # As Python 3.13 wants it, which is strict.
        self.path = self._make(
            "authority", "basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign"
        )

    def sign(self, name: str, where: str) -> Path:
        """Return the certificate of `name`, good for `where`; its key is beside it."""
        return self._make(
            name, f"subjectAltName={where}", "authorityKeyIdentifier=keyid", signer=self.path
        )

    def _make(self, name: str, *extensions: str, signer: Path | None = None) -> Path:
        path = self._directory / f"{name}.pem"
        config = path.with_suffix(".cnf")
        rows = "\n".join(["subjectKeyIdentifier=hash", *extensions])
        config.write_text(
            f"[req]\ndistinguished_name=dn\nx509_extensions=own\n[dn]\n[own]\n{rows}\n"
        )
        command = [
            self._openssl, "req", "-x509", "-config", str(config), "-newkey", "ec", "-pkeyopt",
            "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1", "-subj", f"/CN={name}",
            "-keyout", str(path.with_suffix(".key")), "-out", str(path),
        ]  # fmt: skip
        if signer is not None:
            command += ["-CA", str(signer), "-CAkey", str(signer.with_suffix(".key"))]
        subprocess.run(command, check=True, capture_output=True)
        return path


class TlsServer(RedisServer):
    """Has a port for TLS besides the plain one, which the tests' own questions go to."""

    tls_port = 0

    def __init__(self, authority: Authority, certificate: Path, cluster: bool = False) -> None:
        super().__init__(
            "--tls-cert-file", str(certificate), "--tls-key-file",
            str(certificate.with_suffix(".key")), "--tls-ca-cert-file", str(authority.path),
            "--tls-auth-clients", "no", "--tls-cluster", "yes" if cluster else "no",
            cluster=cluster,
        )  # fmt: skip

    def _command(self) -> list[str]:
        if not self._was_up:
            self.tls_port = free_port()
        return [*super()._command(), "--tls-port", str(self.tls_port)]


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: Any) -> tuple[Authority, Authority]:
    """The one that signs, and another that nobody asked."""
    openssl = shutil.which("openssl") or missing("openssl")
    return (
        Authority(tmp_path_factory.mktemp("own"), openssl),
        Authority(tmp_path_factory.mktemp("other"), openssl),
    )


@contextmanager
def cluster_of(authority: Authority, certificate: Path) -> Iterator[int]:
    """A Cluster whose nodes speak TLS with each other as well; the port of the first one."""
    nodes = [TlsServer(authority, certificate, cluster=True) for _ in range(3)]
    cluster = RedisCluster(size=0)
    cluster.nodes = list(nodes)
    with cluster:
        yield nodes[0].tls_port


def test_a_cluster(authorities: tuple[Authority, Authority]) -> None:
    authority, other = authorities
    right = authority.sign("right", "IP:127.0.0.1,DNS:localhost")
    keys = [f"user:{n}" for n in range(30)]  # of all nodes
    with cluster_of(authority, right) as port:
        url = f"rediss://127.0.0.1:{port}/0?ssl_check_hostname=true&ssl_ca_certs="
        options: dict[str, Any] = {
            "host": "localhost", "port": port, "ssl": True, "ssl_ca_certs": str(authority.path),
            "ssl_check_hostname": True,
        }  # fmt: skip
        client = redis.RedisCluster(**options)
        for given in (f"{url}{authority.path}", client):
            with RedisRateLimiter(
                "4/hour", given, name="api", timeout=PATIENT_S, on_error="raise"
            ) as limiter:
                assert limiter.allow_many(keys) == [True] * len(keys)
        client.close()

        async def together() -> None:
            client = redis.asyncio.RedisCluster(**options)
            for given, told in ((f"{url}{authority.path}", True), (client, True), (client, False)):
                async with AsyncRedisRateLimiter(
                    "4/hour", given, name="api", timeout=PATIENT_S, on_error="raise"
                ) as limiter:
                    asked = [limiter.allow(key) for key in keys]
                    assert await asyncio.gather(*asked) == [told] * len(keys)
            await client.aclose()

        asyncio.run(together())
        refused(f"{url}{other.path}", "CERTIFICATE_VERIFY_FAILED")


def test_a_certificate_for_another_host(authorities: tuple[Authority, Authority]) -> None:
    authority, _ = authorities
    elsewhere = authority.sign("elsewhere", "DNS:elsewhere.example")
    with TlsServer(authority, elsewhere) as server:
        url = f"rediss://localhost:{server.tls_port}/0?ssl_ca_certs={authority.path}"
        refused(f"{url}&ssl_check_hostname=true", "not valid for 'localhost'")
        with RedisRateLimiter(
            "5/hour", f"{url}&ssl_check_hostname=false", timeout=PATIENT_S, on_error="raise"
        ) as limiter:
            assert limiter.allow("k")


def refused(url: str, why: str) -> None:
    """Both kinds say why, and can decide by themselves."""

    async def ask(on_error: Any) -> list[bool]:
        async with AsyncRedisRateLimiter(
            "2/hour", url, timeout=PATIENT_S, on_error=on_error
        ) as limiter:
            return [await limiter.allow("k") for _ in range(3)]

    begun_s = time.monotonic()
    with RedisRateLimiter("2/hour", url, timeout=PATIENT_S, on_error="raise") as limiter:
        with pytest.raises(StoreUnavailableError, match=why):
            limiter.allow("k")
    with pytest.raises(StoreUnavailableError, match=why):
        asyncio.run(ask("raise"))
    with RedisRateLimiter("2/hour", url, timeout=PATIENT_S) as limiter:
        assert [limiter.allow("k") for _ in range(3)] == [True, True, False]
    assert asyncio.run(ask("local")) == [True, True, False]
    assert time.monotonic() - begun_s < PATIENT_S  # nobody waited until the time was up


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads that read certificates for asyncio."""
    names: list[str] = []
    get: Callable[[Any], Any] = RedisSSLContext.get

    def recorded(context: Any) -> Any:
        if context.context is None:
            names.append(threading.current_thread().name)
        return get(context)

    monkeypatch.setattr(RedisSSLContext, "get", recorded)
    return names


def test_certificates_are_read_beside_the_loop(readers: list[str]) -> None:
    # With a server that is gone the loop would halt for them at each probe. Here is none.
    url = f"rediss://127.0.0.1:{free_port()}/0"

    async def ask(url: str) -> None:
        async with AsyncRedisRateLimiter(
            "5/hour", url, timeout=PATIENT_S, on_error="raise"
        ) as limiter:
            await limiter.allow("k")

    with pytest.raises(StoreUnavailableError, match=r"Connect call failed|refused"):
        asyncio.run(ask(url))
    with pytest.raises(StoreUnavailableError, match="No such file"):
        asyncio.run(ask(f"{url}?ssl_ca_certs=/nowhere.pem"))
    assert readers == ["nanolimit-connect"] * 2


@pytest.mark.parametrize("late", ["the loop runs", "the loop is closed"])
def test_who_leaves_while_certificates_are_read(monkeypatch: pytest.MonkeyPatch, late: str) -> None:
    reading, on = threading.Event(), threading.Event()
    threads: list[threading.Thread] = []
    errors: list[object] = []

    def held(context: Any) -> Any:
        threads.append(threading.current_thread())
        reading.set()
        assert on.wait(PATIENT_S)
        raise OSError("it came too late")

    monkeypatch.setattr(RedisSSLContext, "get", held)

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
        async with AsyncRedisRateLimiter(
            "5/hour", f"rediss://127.0.0.1:{free_port()}/0", timeout=0.01
        ) as limiter:
            assert (await limiter.check("k")).degraded
            assert await asyncio.to_thread(reading.wait, PATIENT_S)
        if late == "the loop runs":
            on.set()
            await asyncio.to_thread(threads[0].join, PATIENT_S)
            await asyncio.sleep(0)

    asyncio.run(ask())
    on.set()
    threads[0].join(PATIENT_S)
    assert not threads[0].is_alive()
    assert errors == []
