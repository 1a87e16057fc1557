"""Whatever a process was doing to a shared table, it may be killed at any instruction of it.

step.c does each kind of thing one instruction at a time, and lets heirs come to every state that
the table was in. NANOLIMIT_SOAK=1 kills also at every instruction of every recovery.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from programs import HERE, SOAK, compile_program, compiler, needs_stepping, run
from tools import missing

pytestmark = needs_stepping

SCENES = re.findall(r'^    \{"([^"]+)"', (HERE / "step.c").read_text(), re.MULTILINE)
SAID = re.compile(
    r": (?P<instructions>\d+) instructions, (?P<copies>\d+) distinct copies, (?P<heirs>\d+) heirs; "
    r"mending it: (?P<victims>\d+) victims, .*: all whole\n"
)

#: Those that write nothing, or nothing that a death could leave half done.
HARMLESS = {"deny", "register", "leave"}
#: Of the meters' scenes only the deed is cut short: what they leave is mended like all else.
METERS = {scene for scene in SCENES if ": " in scene}


@pytest.fixture(scope="session")
def step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program("step.c", tmp_path_factory.mktemp("step") / "step", compiler(), "-O2")


def test_every_scene_is_known() -> None:
    assert len(SCENES) == len(set(SCENES)) > 25
    assert set(SCENES) > HARMLESS
    assert len(METERS) >= 8


@pytest.mark.parametrize("scene", SCENES)
def test_killed_at_every_instruction(step: Path, scene: str) -> None:
    said = SAID.search(run(str(step), *(["all"] if SOAK else []), scene))
    assert said is not None
    assert int(said["instructions"]) > 100
    assert (int(said["copies"]) > 1) == (scene != "deny"), "a denial alone writes nothing"
    assert (int(said["victims"]) > 0) == (scene not in HARMLESS | METERS)
    assert int(said["heirs"]) >= 2 * int(said["copies"])


@pytest.mark.skipif(not SOAK, reason="as above, in other instructions: NANOLIMIT_SOAK=1")
@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_as_another_compiler_orders_it(tmp_path: Path, name: str) -> None:
    found = shutil.which(name) or missing(name)
    program = compile_program("step.c", tmp_path / "step", found, "-O3", "-march=native")
    assert len(SAID.findall(run(str(program)))) == len(SCENES)
