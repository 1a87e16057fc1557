"""The limiters that people use today, over nanolimit's engine: change an import, keep your code."""

from __future__ import annotations
