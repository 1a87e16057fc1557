"""What README and docs/ say is so: code runs, links lead somewhere, make targets exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from subprocesses import run

BLOCK = re.compile(r"^```(?P<language>\w+)[^\n]*\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?P<target>[^)#\s]+)(?:#[^)\s]*)?\)")
MAKE = re.compile(r"\bmake ([a-z][a-z-]*)\b")


@pytest.fixture(scope="module")
def documents(source: Path) -> dict[Path, str]:
    paths = [*source.glob("*.md"), *(source / "docs").glob("*.md")]
    return {path: path.read_text("utf-8") for path in paths}


def blocks(text: str, language: str) -> list[str]:
    return [found["code"] for found in BLOCK.finditer(text) if found["language"] == language]


@pytest.mark.parametrize("name", ["README.md", "docs/index.md"])
def test_the_first_code_runs(name: str, source: Path, tmp_path: Path) -> None:
    code = blocks((source / name).read_text("utf-8"), "python")
    assert code
    done = run("-W", "error", "-c", code[0], cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_all_python_in_the_documents_is_python(documents: dict[Path, str]) -> None:
    seen = 0
    for path, text in documents.items():
        for code in blocks(text, "python"):
            compile(code, str(path), "exec")
            seen += 1
    assert seen > 10


def test_links_lead_somewhere(documents: dict[Path, str]) -> None:
    broken: list[str] = []
    seen = 0
    for path, text in documents.items():
        for found in LINK.finditer(BLOCK.sub("", text)):
            target = found["target"]
            if "://" not in target:
                seen += 1
                if not (path.parent / target).exists():
                    broken.append(f"{path.name}: {target}")
    assert seen > 10
    assert broken == []


def test_make_targets_that_are_named_exist(source: Path, documents: dict[Path, str]) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (source / "Makefile").read_text(), re.MULTILINE))
    named: set[str] = set()
    for text in documents.values():
        named |= {found for code in blocks(text, "sh") for found in MAKE.findall(code)}
        named |= {
            found for code in re.findall(r"`([^`\n]+)`", text) for found in MAKE.findall(code)
        }
    assert {"demo", "test"} <= named
    assert named <= targets


@pytest.fixture(scope="module")
def workflows(source: Path) -> dict[str, str]:
    paths = sorted((source / ".github" / "workflows").glob("*.yml"))
    assert [path.name for path in paths] == ["ci.yml", "wheels.yml"]
    return {path.name: path.read_text("utf-8") for path in paths}


def test_workflows_run_make_targets_that_ci_runs(source: Path, workflows: dict[str, str]) -> None:
    """No workflow line is untried: each `run:` is a make target that .ci/run executes too."""
    tried = set(MAKE.findall((source / ".ci" / "run").read_text("utf-8")))
    for name, text in workflows.items():
        commands = re.findall(r"^\s*-? ?run: (.*)$", text, re.MULTILINE)
        assert commands
        for command in commands:
            target = re.fullmatch(r"make ([a-z-]+)(?: PYTHON=python)?", command)
            assert target is not None, f"{name}: {command}"
            # cibuildwheel needs the runners; what it would build is compared by wheels-list.
            assert target[1] in tried | {"wheels"}, f"{name}: {command}"


def test_actions_are_pinned_by_commit(workflows: dict[str, str]) -> None:
    for text in workflows.values():
        actions = re.findall(r"uses: (.*)", text)
        assert actions
        for action in actions:
            assert re.fullmatch(r"[\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
