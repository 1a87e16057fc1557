"""The command line: ``nanolimit replay``, ``sample``, ``tour`` and ``bench``; and for shared tables
``ls``, ``top``, ``dashboard``, ``inspect``, ``rm`` and ``size``.

It needs click and rich, which the limiter itself does not: they are the extra ``nanolimit[cli]``.
Pictures need matplotlib, the extra ``nanolimit[plot]``. Both are asked for by name when they are
missing.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import NoReturn

from nanolimit.cli.extra import MissingExtraError, require

__all__ = ["main"]


def main() -> NoReturn:
    """Run the command line and leave with its exit code.

    0: done. 1: the input could not be used. 2: wrong usage. 3: an extra is not installed. 130:
    interrupted.
    """
    try:
        require("cli")
    except MissingExtraError as missing:
        print(f"nanolimit: {missing}", file=sys.stderr)
        raise SystemExit(missing.exit_code) from None
    from nanolimit.cli.command import run

    if isinstance(sys.stdout, TextIOWrapper):
        # A user's name may hold what the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")

    raise SystemExit(run())
