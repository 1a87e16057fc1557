"""Importing nanolimit is cheap and quiet, and so is leaving the interpreter with it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from subprocesses import run

OPTIONAL = {
    "anyio", "click", "rich", "matplotlib", "numpy", "pytest", "hypothesis", "typing_extensions",
}  # fmt: skip

# Parts of the standard library that cost much to import or that do more than they seem to.
HEAVY = {
    "asyncio", "concurrent.futures", "ctypes", "email", "http", "json", "multiprocessing",
    "pickle", "sched", "selectors", "socket", "sqlite3", "ssl", "subprocess", "tempfile",
    "unittest", "urllib",
}  # fmt: skip

IMPORT = """
import json, sys
before = set(sys.modules)
import nanolimit
import threading
print(json.dumps({
    "modules": sorted(set(sys.modules) - before),
    "threads": [thread.name for thread in threading.enumerate()],
}))
"""


def test_import_brings_nothing_but_light_parts_of_the_standard_library(tmp_path: Path) -> None:
    done = run("-I", "-W", "error", "-c", IMPORT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    modules = set(json.loads(done.stdout)["modules"])
    assert "nanolimit._core" in modules
    tops = {name.partition(".")[0] for name in modules}
    # Cython's modules that share code appear under names of their own.
    foreign = {top for top in tops if not top.startswith(("_cython", "cython_runtime"))}
    assert foreign - sys.stdlib_module_names == {"nanolimit"}
    assert not modules & HEAVY
    assert not any(name.startswith("nanolimit.cli") for name in modules)
    assert "nanolimit.pytest_plugin" not in modules


@pytest.mark.parametrize("module", sorted(OPTIONAL))
def test_import_works_where_an_optional_dependency_is_broken(module: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{module!r}] = None\nimport nanolimit; nanolimit.allow('me')"
    done = run("-I", "-W", "error", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_import_and_use_start_no_thread(tmp_path: Path) -> None:
    code = """
import os, sys, threading
import nanolimit
limiter = nanolimit.RateLimiter(5, per=60)
limiter.allow("me"); limiter.check("me"); limiter.evict(); limiter.close(); nanolimit.allow("me")
assert threading.active_count() == 1, threading.enumerate()
if sys.platform == "linux":
    assert len(os.listdir("/proc/self/task")) == 1
"""
    done = run("-I", "-W", "error", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


LEAVING = {
    "a limiter in a global": """
limiter = RateLimiter(5, per=60)
limiter.allow("me")
""",
    "a bound method that outlives its limiter": """
allow = RateLimiter(5, per=60).allow
assert allow("me")
""",
    "a limiter used while the interpreter ends": """
import atexit
limiter = RateLimiter(2, per=60)
atexit.register(lambda: print(limiter.allow("me"), limiter.allow("me"), limiter.allow("me")))
""",
    "a limiter used by the finalizer of another object": """
class Late:
    def __init__(self, limiter): self.limiter = limiter
    def __del__(self): print(self.limiter.allow("me"))
limiter = RateLimiter(5, per=60)
late = Late(limiter)
late.itself = late
""",
    "telemetry attached": """
seen = []
nanolimit.telemetry.attach("all", ["allowed", "denied"], lambda *event: seen.append(event))
limiter = RateLimiter(1, per=60)
limiter.allow("me"); limiter.allow("me")
assert [event for event, _, _ in seen] == ["allowed", "denied"]
""",
    "a daemon thread in the middle of it": """
import threading
limiter = RateLimiter(5, per=60)
started = threading.Event()
def work():
    keys = list(range(1_000))
    while True:
        limiter.allow("me"); limiter.allow_many(keys); limiter.check(7)
        started.set()
threading.Thread(target=work, daemon=True).start()
assert started.wait(60)
""",
    "a closed limiter": """
limiter = RateLimiter(5, per=60)
limiter.allow("me")
limiter.close()
""",
    "a limiter in a reference cycle with its clock": """
class Clock:
    def __call__(self): return 1.0
clock = Clock()
clock.limiter = RateLimiter(5, per=60, clock=clock)
assert clock.limiter.allow("me")
del clock
""",
    "threads and a task that wait": """
import asyncio, threading
limiter = RateLimiter(1, per=3_600)
limiter.allow("me")
threading.Thread(target=lambda: limiter.acquire("me"), daemon=True).start()
loop = asyncio.new_event_loop()
async def main():
    task = asyncio.ensure_future(limiter.acquire_async("me"))
    await asyncio.sleep(0.01)
    task.cancel()
loop.run_until_complete(main())
loop.run_until_complete(asyncio.sleep(0))
loop.close()
""",
    "a loop that was never closed, with a task that waits": """
import asyncio, warnings
warnings.simplefilter("ignore")
limiter = RateLimiter(1, per=3_600)
limiter.allow("me")
loop = asyncio.new_event_loop()
task = loop.create_task(limiter.acquire_async("me"))
task._log_destroy_pending = False
loop.run_until_complete(asyncio.sleep(0))
loop.run_until_complete(asyncio.sleep(0))
""",
    "the default limiter": """
nanolimit.allow("me")
""",
}
PRINTED = {
    "a limiter used while the interpreter ends": "True True False\n",
    "a limiter used by the finalizer of another object": "True\n",
}


@pytest.mark.parametrize("name", LEAVING)
def test_the_interpreter_ends_quietly_with(name: str, tmp_path: Path) -> None:
    code = "import nanolimit\nfrom nanolimit import RateLimiter\n" + LEAVING[name]
    done = run("-X", "dev", "-c", code, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == PRINTED.get(name, "")
