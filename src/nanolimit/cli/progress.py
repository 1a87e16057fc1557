"""A progress bar for long input: on stderr, only on a terminal, gone when done."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@contextmanager
def bar(text: str, total: int | None, unit: str) -> Iterator[Callable[[int], None] | None]:
    """Give a function that is told how many bytes or requests (`unit`) were done; None where nobody
    would see the bar.

    total=None: the length is not known, and the bar only shows that something goes on.
    """
    console = Console(stderr=True)
    if not console.is_terminal or console.is_dumb_terminal:
        yield None
        return
    counted: ProgressColumn = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        counted,
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task(text, total=total)

        def advance(number: int) -> None:
            progress.advance(task, number)

        yield advance
