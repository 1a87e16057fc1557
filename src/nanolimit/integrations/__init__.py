"""What nanolimit drops into: frameworks, servers and HTTP clients, a module for each."""

from __future__ import annotations
