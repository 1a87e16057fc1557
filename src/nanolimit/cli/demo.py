"""``python -m nanolimit.cli.demo [LOG]``: the tour, then the replay of a log, with its picture in
demo/.

Without LOG a made-up day is written to demo/access.log and replayed (see sample.py). ``make demo``
runs this.
"""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nanolimit.cli.extra import MissingExtraError, require

if TYPE_CHECKING:
    from collections.abc import Sequence

DIRECTORY = Path("demo")
PICTURE = DIRECTORY / "replay.png"
SAMPLE = DIRECTORY / "access.log"
LIMIT = "60/minute"
SWEEP = "5,10,30,60,120/minute"
# Some 200,000 requests: a day of a small shop, read and replayed in a few seconds.
LINES = 200_000


def main(arguments: Sequence[str]) -> int:
    """Run the demo in the current directory and return its exit code."""
    if len(arguments) > 1:
        print("usage: python -m nanolimit.cli.demo [LOG]", file=sys.stderr)
        return 2
    try:
        require("cli")
        require("plot")
    except MissingExtraError as missing:
        print(f"nanolimit: {missing}", file=sys.stderr)
        return missing.exit_code
    from nanolimit.cli import sample
    from nanolimit.cli.command import run

    print("== The limiter, on a clock set by hand ==", flush=True)
    code = run(["tour"])
    if code:
        return code
    DIRECTORY.mkdir(exist_ok=True)
    if arguments:
        log = arguments[0]
    else:
        log = str(SAMPLE)
        with SAMPLE.open("w", encoding="ascii", newline="\n") as file:
            file.writelines(line + "\n" for line in sample.lines(LINES, 1, datetime(2026, 3, 2)))
    command = ["replay", log, "--limit", LIMIT, "--sweep", SWEEP, "--plot", str(PICTURE)]
    print("== What a limit would have done to a log ==")
    print("nanolimit " + " ".join(command) + "\n", flush=True)
    code = run(command)
    if code:
        return code
    print(PICTURE.resolve())
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
