"""A network that misbehaves on order: a proxy between a client and a server on loopback."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class TcpProxy:
    """Listens on a port of its own while the ``with`` block runs; at first it passes all on.

    Args:
        port: Where the server listens; 0 for none: connections are taken and nothing is answered.
    """

    host = "127.0.0.1"

    def __init__(self, port: int) -> None:
        self._server_port = port
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket | None]] = []
        self._lock = threading.Lock()
        self._closed = False
        self._reply_bytes_left: int | None = None
        self._drip_s = 0.0
        self._open = threading.Event()
        self._open.set()
        self.accepted = 0
        self.requests = bytearray()

    # What goes wrong

    def cut_replies_after(self, size: int) -> None:
        """Pass on so many more bytes of replies, then close that connection on both sides."""
        self._reply_bytes_left = size

    def drip(self, pause_s: float) -> None:
        """Pass replies on byte by byte."""
        self._drip_s = pause_s

    def hold(self) -> None:
        """Pass on no more replies, until `release`; requests go on."""
        self._open.clear()

    def release(self) -> None:
        """Pass on what was held."""
        self._open.set()

    def cut(self) -> None:
        """Close all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for each in pair:
                if each is not None:
                    _close(each)

    def mend(self) -> None:
        """Pass all on again."""
        self._reply_bytes_left = None
        self._drip_s = 0.0
        self._open.set()

    # Passing on

    def __enter__(self) -> TcpProxy:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._closed = True
        _close(self._listener)
        self._open.set()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            server: socket.socket | None = None
            if self._server_port:
                try:
                    server = socket.create_connection((self.host, self._server_port))
                    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                except OSError:
                    _close(client)
                    continue
            with self._lock:
                self._pairs.append((client, server))
            if server is not None:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for work in (self._requests, self._replies):
                    threading.Thread(target=work, args=(client, server), daemon=True).start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65_536):
                self.requests += data
                server.sendall(data)
        _close(client)
        _close(server)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65_536):
                self._open.wait()
                left = self._reply_bytes_left
                if left is not None:
                    client.sendall(data[:left])
                    self._reply_bytes_left = max(0, left - len(data))
                    if len(data) > left:
                        break
                elif self._drip_s:
                    for byte in data:
                        time.sleep(self._drip_s)
                        client.sendall(bytes([byte]))
                else:
                    client.sendall(data)
        _close(client)
        _close(server)


def _close(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)
    sock.close()
