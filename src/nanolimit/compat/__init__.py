"""The limiters that people use today, over nanolimit's engine: change one import, keep the code."""

from __future__ import annotations
