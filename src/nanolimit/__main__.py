"""``python -m nanolimit`` is the command ``nanolimit``."""

from __future__ import annotations

from nanolimit.cli import main

if __name__ == "__main__":
    main()
