"""Which packages an extra brings, and the message that asks for it by name."""

from __future__ import annotations

import importlib

PACKAGES: dict[str, tuple[str, ...]] = {"cli": ("click", "rich"), "plot": ("matplotlib",)}
PURPOSE: dict[str, str] = {"cli": "the command line", "plot": "a picture"}


class MissingExtraError(Exception):
    """An optional dependency is not installed. ``str()`` of it says what to install."""

    exit_code = 3

    def __init__(self, extra: str, missing: list[str]) -> None:
        super().__init__(
            f"{PURPOSE[extra]} needs {' and '.join(missing)}, not installed here. "
            f"Install with: pip install 'nanolimit[{extra}]'"
        )
        self.extra = extra
        self.missing = missing


def require(extra: str) -> None:
    """Raise MissingExtraError, naming every package of the extra that cannot be imported."""
    missing = []
    for package in PACKAGES[extra]:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        raise MissingExtraError(extra, missing)
