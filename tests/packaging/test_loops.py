"""No signal tears what a lock or a `finally` holds together.

A signal handler of Python, that of Ctrl-C among them, runs between two instructions and may raise
there. At the backward jump of a loop CPython 3.12 and later raise it past the `with` and the `try`
that stand around the loop in the same function: a lock stays held, a place in a line is not given
back. So there is no loop within them where threads wait; it stands in a function that is called.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nanolimit

LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp)


def torn(tree: ast.AST, guarded: bool = False) -> Iterator[int]:
    """The lines of loops that stand in a `with` or `try` of their own function."""
    for node in ast.iter_child_nodes(tree):
        inside = guarded
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)):
            inside = False
        elif isinstance(node, (ast.With, ast.AsyncWith, ast.Try)):
            inside = True
        elif guarded and isinstance(node, LOOPS):
            yield node.lineno
        yield from torn(node, inside)


@pytest.mark.parametrize("name", ["line.py", "waiting.py", "anyio.py"])
def test_no_loop_is_guarded_in_its_own_function(name: str) -> None:
    source = (Path(nanolimit.__file__).parent / name).read_text()
    assert list(torn(ast.parse(source))) == []


def test_the_test() -> None:
    assert list(torn(ast.parse("with lock:\n    for x in y:\n        pass\n"))) == [2]
    assert list(torn(ast.parse("try:\n    [x for x in y]\nfinally:\n    pass\n"))) == [2]
    assert list(torn(ast.parse("for x in y:\n    with lock:\n        z()\n"))) == []
