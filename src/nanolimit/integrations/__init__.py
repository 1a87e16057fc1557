"""nanolimit in other people's frameworks. A module imports what it is named after."""

from __future__ import annotations
