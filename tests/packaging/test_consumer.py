"""Other people's Cython code: `cimport nanolimit`, as installed, and checks without the GIL."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

import nanolimit
from nanolimit import ManualClock, RateLimiter
from subprocesses import run
from tools import missing

CONSUMER = """
# cython: language_level=3, freethreading_compatible=True
from libc.stddef cimport size_t

cimport nanolimit
from nanolimit cimport Limiter, allow_bytes, allow_int

nanolimit.import_nanolimit()


def ask_bytes(Limiter limiter, bytes key, long long cost=1):
    cdef const char *data = key
    cdef size_t length = <size_t>len(key)
    cdef int answer
    with nogil:
        answer = allow_bytes(limiter, data, length, cost)
    return answer


def ask_int(Limiter limiter, long long key, long long cost=1):
    cdef int answer
    with nogil:
        answer = nanolimit.allow_int(limiter, key, cost)
    return answer


def hammer(Limiter limiter, bytes key, long long number, int calls):
    '''Ask `calls` times for each of two keys, all without the GIL; what was allowed of each.'''
    cdef const char *data = key
    cdef size_t length = <size_t>len(key)
    cdef int bytes_allowed = 0
    cdef int ints_allowed = 0
    cdef int call
    with nogil:
        for call in range(calls):
            bytes_allowed += allow_bytes(limiter, data, length, 1) == 1
            ints_allowed += allow_int(limiter, number, 1) == 1
    return bytes_allowed, ints_allowed
"""

SETUP = """
import sys
from Cython.Build import cythonize
from setuptools import Extension, setup
import nanolimit

extension = Extension("consumer", ["consumer.pyx"], include_dirs=[nanolimit.get_include()])
modules = cythonize([extension], include_path=sys.path)
setup(name="consumer", ext_modules=modules, script_args=["build_ext", "--inplace"])
"""

BAD_COST, CLOSED, NEEDS_GIL = -1, -2, -3


def built(folder: Path) -> Path:
    """Build the consumer in `folder`; the path of its extension."""
    folder.mkdir(exist_ok=True)
    (folder / "consumer.pyx").write_text(CONSUMER)
    (folder / "setup.py").write_text(SETUP)
    done = run("setup.py", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (extension,) = [path for path in folder.glob("consumer*") if path.suffix in {".so", ".pyd"}]
    return extension


@pytest.fixture(scope="module")
def toolchain() -> None:
    for module in ("Cython", "setuptools"):
        if importlib.util.find_spec(module) is None:
            missing(module)
    if sys.platform != "win32" and shutil.which("cc") is None:
        missing("a C compiler")


@pytest.fixture(scope="module")
def consumer(toolchain: None, tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    path = built(tmp_path_factory.mktemp("consumer"))
    spec = importlib.util.spec_from_file_location("consumer", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_c_key_is_the_same_user_as_a_python_key(consumer: ModuleType) -> None:
    limiter = RateLimiter(3, per=3600)
    for key, ask in ((b"me", consumer.ask_bytes), (-7, consumer.ask_int)):
        assert ask(limiter.core, key) == 1
        assert limiter.allow(key)
        assert ask(limiter.core, key) == 1
        assert ask(limiter.core, key) == 0
        assert not limiter.allow(key)
        assert limiter.check(key).remaining == 0
    # and no other one
    assert limiter.check("me").remaining == 2
    assert limiter.check(7).remaining == 2
    assert limiter.stats().denied == 6


@pytest.mark.parametrize("key", [b"", b"\0", b"a\0b", b"x" * 100_000])
def test_bytes_of_any_kind(consumer: ModuleType, key: bytes) -> None:
    limiter = RateLimiter(2, per=3600)
    assert consumer.ask_bytes(limiter.core, key) == 1
    assert limiter.check(key).remaining == 0
    assert len(limiter) == 1


@pytest.mark.parametrize("key", [0, -1, 2**63 - 1, -(2**63)])
def test_integers_of_any_size(consumer: ModuleType, key: int) -> None:
    limiter = RateLimiter(2, per=3600)
    assert consumer.ask_int(limiter.core, key) == 1
    assert limiter.check(key).remaining == 0
    assert len(limiter) == 1


def test_costs(consumer: ModuleType) -> None:
    limiter = RateLimiter(5, per=3600)
    for ask, key in ((consumer.ask_bytes, b"me"), (consumer.ask_int, 1)):
        assert ask(limiter.core, key, 3) == 1
        assert ask(limiter.core, key, 3) == 0
        assert ask(limiter.core, key, 2) == 1
        assert ask(limiter.core, key, 0) == 1
        for cost in (-1, 6, 2**62, -(2**63)):
            assert ask(limiter.core, key, cost) == BAD_COST
    assert limiter.stats()[:2] == (4, 2)


def test_a_closed_limiter_and_a_python_clock(consumer: ModuleType) -> None:
    limiter = RateLimiter(5, per=60, clock=ManualClock())
    assert consumer.ask_bytes(limiter.core, b"me") == NEEDS_GIL
    assert consumer.ask_int(limiter.core, 1) == NEEDS_GIL
    assert limiter.allow(b"me")
    closed = RateLimiter(5, per=60)
    closed.close()
    assert consumer.ask_bytes(closed.core, b"me") == CLOSED
    assert consumer.ask_int(closed.core, 1) == CLOSED


def test_a_limiter_is_asked_for_by_its_core(consumer: ModuleType) -> None:
    with pytest.raises(TypeError):
        consumer.ask_int(RateLimiter(5, per=60), 1)


def together(count: int, work: Callable[[int], None]) -> None:
    """Run `work(index)` in so many threads that start at once; what one raises is raised here."""
    barrier = threading.Barrier(count)
    errors: list[BaseException] = []

    def start(index: int) -> None:
        try:
            barrier.wait(60)
            work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_threads_without_the_gil_get_exactly_the_limit(consumer: ModuleType) -> None:
    limit, count, calls = 1_000, 4, 2_000
    for number in range(20):
        limiter = RateLimiter(limit, per=86_400)
        allowed: list[tuple[int, int]] = [(0, 0)] * count

        def work(index: int, allowed=allowed, core=limiter.core, number=number) -> None:  # type: ignore[no-untyped-def]
            allowed[index] = consumer.hammer(core, b"everyone", number, calls)

        together(count, work)
        assert sum(one for one, _ in allowed) == limit
        assert sum(other for _, other in allowed) == limit
        stats = limiter.stats()
        assert (stats.allowed, stats.denied) == (2 * limit, 2 * (count * calls - limit))
        assert stats.keys == 2


def test_another_abi_is_an_import_error(toolchain: None, installed: Path, tmp_path: Path) -> None:
    """Built against a nanolimit of another ABI number, a consumer must not start."""
    other = tmp_path / "other" / "nanolimit"
    shutil.copytree(installed, other, ignore=shutil.ignore_patterns("__pycache__", "cli"))
    number = nanolimit._core.ABI_VERSION
    changed = 0
    for path in other.rglob("*.pxd"):
        text = path.read_text("utf-8")
        text, hits = re.subn(rf"(\bNANOLIMIT_ABI = ){number}\b", rf"\g<1>{number + 1}", text)
        path.write_text(text)
        changed += hits
    assert changed == 1, "the ABI number stands in one place in the .pxd files"
    folder = tmp_path / "consumer"
    folder.mkdir()
    (folder / "consumer.pyx").write_text(CONSUMER)
    (folder / "setup.py").write_text(
        SETUP.replace("include_path=sys.path", f"include_path=[{str(other.parent)!r}]")
    )
    done = run("setup.py", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    done = run("-c", "import consumer", cwd=folder)
    assert done.returncode == 1
    assert "ImportError" in done.stderr
    assert f"{number}" in done.stderr
    assert f"{number + 1}" in done.stderr
