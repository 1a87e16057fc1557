"""The limiters that people use today, over nanolimit's engine: change one import, keep your code."""

from __future__ import annotations
