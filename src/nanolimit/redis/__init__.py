"""Limits that hold for many machines: Redis or Valkey keeps the logs, scripts there decide."""

from __future__ import annotations
