"""The processes that have a shared table open, as far as one can see them from outside.

A table knows the number of each, in the PID namespace that it runs in. What that number means here
is asked of /proc, and believed only of a process that has the table's file mapped: a container's
process 7 is not this machine's.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

_PROC = Path("/proc")
_NAME_CHARS = 200


@dataclass(frozen=True)
class Process:
    """A process that has a table open, once for each of its limiters on it.

    Two are equal if they have the same number and both are alive, or both dead.
    """

    pid: int
    """Its number, in the PID namespace that it runs in."""

    alive: bool
    """False for one that was killed and whose entry nobody has needed since."""

    command: str | None = field(default=None, compare=False)
    """What it runs: its command line, cut to 200 characters. None: it can't be seen from here,
    because it is dead, another user's or in another PID namespace."""

    started: datetime | None = field(default=None, compare=False)
    """When it was started, in UTC, to a tenth of a second. None as for `command`."""


def described(process: Process, status: os.stat_result) -> Process:
    """Return the process with what /proc says of it, if it has the file of that status mapped.

    Costs a few reads in /proc, as a rule under a millisecond.
    """
    if not process.alive:
        return process
    folder = _PROC / str(process.pid)
    try:
        if not _has_mapped(folder, status):
            return process
        words = (folder / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
        name = (folder / "comm").read_bytes().rstrip(b"\n")
        fields = (folder / "stat").read_bytes().rpartition(b")")[2].split()
        started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return process  # it has just ended, it is another user's, or /proc is not what it should be
    command = b" ".join(words) or name
    return replace(
        process,
        command=os.fsdecode(command)[:_NAME_CHARS],
        started=datetime.fromtimestamp(round(_booted_s() + started_s, 1), timezone.utc),
    )


def _has_mapped(folder: Path, status: os.stat_result) -> bool:
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}".encode()
    wanted = [device, str(status.st_ino).encode()]
    with (folder / "maps").open("rb") as lines:
        return any(line.split(None, 5)[3:5] == wanted for line in lines)


def _booted_s() -> float:
    """When the machine was started, in Unix seconds; it moves when its clock is set."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
