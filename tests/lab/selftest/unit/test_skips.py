# SPDX-License-Identifier: Apache-2.0
"""Every test that is skipped says what would make it run."""

import ast
from pathlib import Path

import pytest

from tests.skips import RUNS, skip, skip_if

TESTS = Path(__file__).parents[3]
FORBIDDEN = {"pytest.skip", "pytest.importorskip", "pytest.mark.skip", "pytest.mark.skipif"}


def test_the_reason_says_what_would_make_it_run() -> None:
    with pytest.raises(BaseException, match=f"no zsh here{RUNS}with zsh"):
        skip("no zsh here", runs="with zsh")
    mark = skip_if(bool(1), "no zsh here", runs="with zsh").mark
    assert mark.kwargs["reason"] == f"no zsh here{RUNS}with zsh"


def test_no_test_is_skipped_in_another_way() -> None:
    found = [
        f"{path.relative_to(TESTS)}:{node.lineno}"
        for path in TESTS.rglob("*.py")
        if path != TESTS / "skips.py"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) in FORBIDDEN)
        or (isinstance(node, ast.ImportFrom) and node.module == "pytest")
    ]
    assert found == []
