"""What tests of shared tables have in common: other processes, other users, damaged files."""

from __future__ import annotations

import os
import pickle
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nanolimit import _core
from tools import impossible, missing

needs_shared = pytest.mark.skipif(
    not getattr(_core, "SHARED", False), reason="this platform has no shared tables"
)
needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may become another user"
)

#: Users and a group that need not exist.
STRANGER, OTHER, GROUP = 60_001, 60_002, 60_003


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A private directory on a tmpfs, where tables belong; elsewhere if there is none."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    path = Path(tempfile.mkdtemp(prefix="nanolimit-test-", dir=where))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def python(
    code: str, *arguments: object, timeout_s: float = 60, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run code in a Python of its own, and give what it printed. Fails if it fails."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_s,
        **options,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def in_child(
    work: Callable[[], Any], *, uid: int | None = None, groups: tuple[int, ...] = ()
) -> Any:
    """Call `work` in a forked child, as another user if one is given.

    Returns what it returned, or the exception that it raised.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            if uid is not None:
                os.setgroups(list(groups))
                os.setgid(groups[0] if groups else uid)
                os.setuid(uid)
            try:
                result = work()
            except Exception as error:
                result = error
            data = pickle.dumps(result)
            while data:
                data = data[os.write(writer, data) :]
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    assert os.waitpid(pid, 0)[1] == 0, "the child died"
    return pickle.loads(data)


def in_namespace(kind: str, code: str, *arguments: object) -> list[str]:
    """Run code in a Python with a namespace of its own ("mount", "time"). Gives its lines.

    Skips where that is not allowed.
    """
    unshare = shutil.which("unshare")
    if unshare is None:
        missing("unshare")
    options = {"mount": ["--mount", "--propagation", "private"], "time": ["--time", "--fork"]}
    probe = {"mount": ["mount", "-t", "tmpfs", "none", "/mnt"], "time": ["true"]}
    enter = [unshare, *options[kind]]
    if os.geteuid() != 0:
        enter.append("--map-root-user")  # in a user namespace, where that is allowed
    tried = subprocess.run([*enter, *probe[kind]], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        impossible(f"a {kind} namespace is not allowed: {tried.stderr.strip()}")
    done = subprocess.run(
        [*enter, sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


# A file's first bytes: layout version 3.
FIELDS = {
    "magic": (0, "8s"),
    "version": (8, "=I"),
    "byte_order": (12, "=I"),
    "word_bytes": (16, "=I"),
    "page_bytes": (20, "=I"),
    "header_bytes": (24, "=I"),
    "state": (28, "=I"),
    "file_bytes": (32, "=Q"),
    "window_ns": (40, "=Q"),
    "max_keys": (48, "=I"),
    "layout_limit": (52, "=I"),
    "typical": (56, "=I"),
    "algorithm": (60, "=I"),
    "boot_id": (64, "16s"),
    "pid_namespace": (80, "=Q"),
    "time_namespace": (88, "=Q"),
    "created_ns": (96, "=Q"),
    "own_clock": (104, "=I"),
    "secret": (112, "16s"),
    "max_log": (128, "=I"),
    "track_top": (132, "=I"),
    "digest": (136, "=Q"),
}
_DIGEST_KEY = struct.pack("<QQ", 0x6C696D69746E616E, 0x6865616465720A)


def field(path: Path, name: str) -> Any:
    """Read a field of a header."""
    offset, form = FIELDS[name]
    with path.open("rb") as file:
        file.seek(offset)
        return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def put_field(path: Path, name: str, value: Any, *, sign: bool = True) -> None:
    """Write a field of a header, and the digest that goes with it."""
    offset, form = FIELDS[name]
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, value))
        if sign:
            file.seek(0)
            head = bytearray(file.read(FIELDS["digest"][0]))
            head[28:32] = bytes(4)  # all but the state, which changes
            file.write(_core._siphash128(_DIGEST_KEY, bytes(head))[:8])
