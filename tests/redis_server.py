"""A real Redis or Valkey server, started for a test on a free loopback port and stopped by its pid.

It speaks to the server by a few lines of its own, not by a client library: what is tested is how
such a library is used. Skips by name (tools.py) where the server is not installed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tools import missing

#: The program that is started where a test does not name one. A path in the environment's
#: $NANOLIMIT_REDIS_SERVER takes its place: so all tests run on another version, or on Valkey.
REDIS = os.environ.get("NANOLIMIT_REDIS_SERVER") or "redis-server"
#: The same of Valkey, and $NANOLIMIT_VALKEY_SERVER.
VALKEY = os.environ.get("NANOLIMIT_VALKEY_SERVER") or "valkey-server"

#: A test under this mark runs on each, by the fixture `binary` (integration/conftest.py).
on_both = pytest.mark.parametrize(
    "binary", [REDIS, VALKEY], ids=["redis", "valkey"], indirect=True, scope="module"
)

START_S = 30.0
POLL_S = 0.005
SLOTS = 16_384

_running: set[subprocess.Popen[bytes]] = set()


class RedisError(Exception):
    """An error that the server replied, such as "LOADING ..."."""


class RedisServer:
    """Runs while the ``with`` block does, without persistence, in a directory of its own.

    Args:
        options: What the server's command line is given, such as ``"--maxmemory", "2mb"``.
        binary: The program: `REDIS`, `VALKEY`, or a path.
        password: What its default user must say.
        cluster: Run it in cluster mode.
    """

    host = "127.0.0.1"

    def __init__(
        self,
        *options: str,
        binary: str = REDIS,
        password: str | None = None,
        cluster: bool = False,
    ) -> None:
        path = shutil.which(binary)
        if path is None:
            missing(binary)
        self._binary = path
        self._options = options
        self._cluster = cluster
        self._was_up = False
        self._process: subprocess.Popen[bytes] | None = None
        self.password = password
        self.port = 0
        self._bus_port = 0
        self.directory = Path(tempfile.mkdtemp(prefix="nanolimit-redis-"))

    @property
    def url(self) -> str:
        """Where it listens, as clients write it."""
        secret = f":{self.password}@" if self.password else ""
        return f"redis://{secret}{self.host}:{self.port}/0"

    @property
    def unix_path(self) -> str:
        """The path of its unix socket."""
        return str(self.directory / "redis.sock")

    @property
    def unix_url(self) -> str:
        """Its unix socket, as clients write it."""
        secret = f":{self.password}@" if self.password else ""
        return f"unix://{secret}{self.unix_path}?db=0"

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    # Its life

    def start(self, while_loading: bool = False) -> None:
        """Start it, on the port that it had before if it had one; return when it answers.

        Args:
            while_loading: "LOADING ..." is an answer too.
        """
        assert self._process is None, "the server runs already"
        deadline = time.monotonic() + START_S
        while True:
            self.port = self.port or free_port()
            self._bus_port = self._bus_port or free_port()
            process = self._spawn()
            if self._answers(process, deadline, while_loading):
                return
            self.kill()
            text = self.log()
            if "in use" not in text or time.monotonic() > deadline:
                raise AssertionError(f"the server did not start:\n{text}")
            # Another took the port between the look and the start; of a restart it is ours to wait.
            if not self._was_up:
                self.port = self._bus_port = 0
            time.sleep(POLL_S)

    def _command(self) -> list[str]:
        command = [
            self._binary, "--port", str(self.port), "--bind", self.host, "--dir",
            str(self.directory), "--unixsocket", self.unix_path, "--save", "", "--appendonly", "no",
            "--daemonize", "no", "--databases", "16", "--loglevel", "notice",
            "--logfile", str(self.directory / "log"),
        ]  # fmt: skip
        if self.password is not None:
            command += ["--requirepass", self.password, "--masterauth", self.password]
        if self._cluster:
            command += [
                "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf",
                "--cluster-port", str(self._bus_port), "--cluster-node-timeout", "5000",
            ]  # fmt: skip
        return [*command, *self._options]

    def _spawn(self) -> subprocess.Popen[bytes]:
        command = self._command()
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        _running.add(self._process)
        return self._process

    def _answers(
        self, process: subprocess.Popen[bytes], deadline: float, while_loading: bool
    ) -> bool:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                if self.ask("PING") == "PONG" and self.ask_pid() == process.pid:
                    self._was_up = True
                    return True
            except RedisError as error:
                if while_loading or not str(error).startswith("LOADING"):
                    self._was_up = True
                    return True
            except OSError:
                pass
            time.sleep(POLL_S)
        return False

    def ask_pid(self) -> int:
        """The process that answers on the port: another server may have it."""
        return int(self.info("server")["process_id"])

    def stop(self) -> None:
        """End it with SIGTERM, and wait for the end."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            pass
        self.kill()

    def kill(self) -> None:
        """End it with SIGKILL, and wait for the end."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        _running.discard(self._process)
        self._process = None

    def restart(self) -> None:
        """Kill it with -9 and start it anew on the same port; it has forgotten all."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: the kernel goes on accepting connections and bytes for it, nobody answers."""
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is delivered before it returns, but a stop is seen a moment later.
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still while the ``with`` block runs."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it and remove its directory."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def log(self) -> str:
        """The end of what it logged."""
        path = self.directory / "log"
        return path.read_text("utf-8", "replace")[-10_000:] if path.exists() else ""

    # Talking to it

    def ask(self, *words: str | bytes | int, timeout_s: float = START_S) -> Any:
        """Send one command over a connection of its own and return the reply.

        Raises:
            RedisError: The reply is an error.
        """
        with self.line(timeout_s) as line:
            return line.ask(*words)

    def line(self, timeout_s: float = START_S) -> Line:
        """Open a connection; as the default user, where there is a password."""
        line = Line(socket.create_connection((self.host, self.port), timeout=timeout_s))
        if self.password is not None:
            line.ask("AUTH", self.password)
        return line

    def follow(self, master: RedisServer, port: int | None = None) -> None:
        """Become its replica, and return when what is written there arrives here.

        Args:
            master: Whom to follow.
            port: Where that is reached, if not on its own port.
        """
        master.config_set("repl-diskless-sync-delay", 0)
        self.ask("REPLICAOF", master.host, port or master.port)
        deadline = time.monotonic() + START_S
        while self.info("replication").get("master_link_status") != "up":
            assert time.monotonic() < deadline, f"it does not follow:\n{self.log()}"
            time.sleep(POLL_S)
        # All is copied. But what is written now is sent from its first "so far I am" on only.
        with master.line() as line:
            line.ask("SET", "mark", "")
            line.ask("DEL", "mark")
            assert line.ask("WAIT", 1, int(START_S * 1_000)) == 1

    def config_set(self, name: str, value: str | int) -> None:
        """CONFIG SET."""
        assert self.ask("CONFIG", "SET", name, value) == "OK"

    def info(self, section: str = "everything") -> dict[str, str]:
        """INFO, as a dict of text."""
        text = self.ask("INFO", section).decode("utf-8", "replace")
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def calls(self, command: str, kind: str = "calls") -> int:
        """How often it ran a command since it started, such as "evalsha".

        Args:
            command: In lower case; a part of one as in "cluster|slots".
            kind: Else "failed_calls", or "rejected_calls", of which a cluster's redirections are.
        """
        row = self.info("commandstats").get(f"cmdstat_{command}", "")
        pairs = dict(pair.split("=", 1) for pair in row.split(",") if pair)
        return int(pairs.get(kind, 0))

    def clients(self) -> list[dict[str, str]]:
        """Who is connected, the one that asks left out."""
        with self.line() as line:
            own = str(line.ask("CLIENT", "ID"))
            rows = line.ask("CLIENT", "LIST").decode().splitlines()
        found = [dict(pair.split("=", 1) for pair in row.split(" ")) for row in rows]
        return [each for each in found if each["id"] != own]


class RedisCluster:
    """Three nodes without replicas that share the slots; runs while the ``with`` block does."""

    def __init__(self, *options: str, binary: str = REDIS, size: int = 3) -> None:
        self.nodes = [RedisServer(*options, binary=binary, cluster=True) for _ in range(size)]

    @property
    def url(self) -> str:
        """Its first node."""
        return self.nodes[0].url

    def __enter__(self) -> RedisCluster:
        try:
            for node in self.nodes:
                node.start()
            self._join()
        except BaseException:
            self.close()
            raise
        return self

    def _join(self) -> None:
        share, first = SLOTS // len(self.nodes), self.nodes[0]
        for number, node in enumerate(self.nodes):
            last = SLOTS - 1 if node is self.nodes[-1] else (number + 1) * share - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            node.ask("CLUSTER", "MEET", first.host, first.port, first._bus_port)
        self.wait_until_whole()

    def wait_until_whole(self) -> None:
        """Return when all nodes know of all slots."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            texts = [node.ask("CLUSTER", "INFO").decode() for node in self.nodes]
            known = f"cluster_known_nodes:{len(self.nodes)}\r"
            if all("cluster_state:ok" in text and known in text for text in texts):
                return
            time.sleep(POLL_S)
        raise AssertionError(f"the cluster did not join:\n{texts[0]}\n{self.nodes[0].log()}")

    def node_of(self, slot: int) -> RedisServer:
        """Return the node that serves a slot, as it says itself: the others learn of it later."""
        for node in self.nodes:
            for first, last, owner, *_ in node.ask("CLUSTER", "SLOTS"):
                if first <= slot <= last and owner[1] == node.port:
                    return node
        raise AssertionError(f"nobody serves slot {slot}")

    def slot_of(self, key: str | bytes) -> int:
        """Return the slot of a key."""
        slot = self.nodes[0].ask("CLUSTER", "KEYSLOT", key)
        assert isinstance(slot, int)
        return slot

    @staticmethod
    def id_of(node: RedisServer) -> bytes:
        """Return the name that the cluster has for a node."""
        name = node.ask("CLUSTER", "MYID")
        assert isinstance(name, bytes)
        return name

    def begin_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Announce the move: from now on there are ASK replies for keys that source lacks."""
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def move_keys(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Move the keys of the slot."""
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.ask("MIGRATE", target.host, target.port, "", 0, 5000, "KEYS", *keys)

    def end_move(self, slot: int, source: RedisServer, target: RedisServer) -> None:
        """Give the slot over: from now on source replies MOVED."""
        name = self.id_of(target)
        for node in (target, source, *self.nodes):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
        # Who moves it on before all have heard of the new epoch gets two nodes that both claim it.
        deadline = time.monotonic() + START_S
        while not self._agree_on(slot, target, name):
            assert time.monotonic() < deadline, f"the nodes do not agree on slot {slot}"
            time.sleep(POLL_S)

    def _agree_on(self, slot: int, target: RedisServer, name: bytes) -> bool:
        epoch = target.ask("CLUSTER", "INFO").partition(b"cluster_my_epoch:")[2].split()[0]
        for node in self.nodes:
            rows = [row.split() for row in node.ask("CLUSTER", "NODES").splitlines()]
            if not any(row[0] == name and row[6] == epoch for row in rows):
                return False
            owner = next(
                (each[1] for first, last, each, *_ in node.ask("CLUSTER", "SLOTS")
                 if first <= slot <= last), None,
            )  # fmt: skip
            if owner != target.port:
                return False
        return True

    def move_slot(self, slot: int, target: RedisServer) -> None:
        """Move a slot with its keys, as redis-cli does it."""
        source = self.node_of(slot)
        self.begin_move(slot, source, target)
        self.move_keys(slot, source, target)
        self.end_move(slot, source, target)

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.close()


class RedisSentinel(RedisServer):
    """A Sentinel that watches one master, called "main", and may fail over all by itself."""

    def watch(self, master: RedisServer, down_after_ms: int = 30_000) -> None:
        """Say that this is the master from now on, as after a failover.

        Args:
            master: It.
            down_after_ms: For how long it may be silent before it counts as down.
        """
        with self.line() as line:
            if line.ask("SENTINEL", "MASTERS"):
                line.ask("SENTINEL", "REMOVE", "main")
            line.ask("SENTINEL", "MONITOR", "main", master.host, master.port, 1)
            line.ask("SENTINEL", "SET", "main", "down-after-milliseconds", down_after_ms)

    def master_port(self) -> int:
        """The port of whom it takes for the master."""
        return int(self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main")[1])

    def knows_replica(self) -> bool:
        """Whether it has a replica that could take over."""
        rows = [
            dict(zip(row[::2], row[1::2], strict=True))
            for row in self.ask("SENTINEL", "REPLICAS", "main")
        ]
        return any(
            row[b"flags"] == b"slave" and row[b"master-link-status"] == b"ok" for row in rows
        )

    def _command(self) -> list[str]:
        # A Sentinel takes its options from a file only, which it rewrites.
        config = self.directory / "sentinel.conf"
        config.write_text(
            f"port {self.port}\nbind {self.host}\ndir {self.directory}\n"
            f"logfile {self.directory / 'log'}\n"
        )
        return [self._binary, str(config), "--sentinel"]


class Line:
    """A connection that sends a command and reads its reply; RESP2."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._file = sock.makefile("rb")

    def ask(self, *words: str | bytes | int) -> Any:
        """Send one command, return its reply; RedisError if that is an error."""
        self.send(*words)
        return self.read()

    def send(self, *words: str | bytes | int) -> None:
        """Send one command and don't wait."""
        parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
        body = b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)
        self._socket.sendall(b"*%d\r\n" % len(parts) + body)

    def read(self) -> Any:
        """Read one reply."""
        line = self._file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("the server closed the connection")
        kind, rest = line[:1], line[1:-2]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise RedisError(rest.decode())
        if kind == b":":
            return int(rest)
        size = int(rest)
        if size < 0:
            return None
        if kind == b"*":
            return [self.read() for _ in range(size)]
        return self._file.read(size + 2)[:-2]

    def __enter__(self) -> Line:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._socket.close()


def free_port() -> int:
    """Return a port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert isinstance(port, int)
        return port


@atexit.register
def _end() -> None:
    # Of a run that was broken off; each test closes what it started.
    for process in list(_running):
        process.kill()
        process.wait()
