# SPDX-License-Identifier: Apache-2.0
"""The linters are tests: ruff, mypy --strict, and the first lines of every file."""

import ast
import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

COMMAND = re.compile(r"\bpmuctl (?:affinity|doctor|host|monitor|pmu|vm)\b[\w /=-]*$")
"""What stands before a word that is put in."""


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_the_linter_has_nothing_to_say(command: list[str]) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_file_says_its_licence_and_what_it_is_for() -> None:
    for path in sorted([*ROOT.glob("pmuctl/**/*.py"), *ROOT.glob("tests/**/*.py")]):
        text = path.read_text(encoding="utf-8")
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
        if path.name != "__init__.py":
            assert text.split("\n", 1)[1].lstrip().startswith('"""'), path


def test_no_command_to_paste_is_put_together_without_quotes() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{its.lineno}"
        for path in sorted(ROOT.glob("pmuctl/**/*.py"))
        for its in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(its, ast.JoinedStr)
        for before, after in itertools.pairwise(its.values)
        if isinstance(before, ast.Constant) and isinstance(after, ast.FormattedValue)
        if COMMAND.search(str(before.value))
    ]
    assert not found, "errors.command() quotes what it is given"
