# SPDX-License-Identifier: Apache-2.0
"""The README's terminal session is what the demonstration prints on a real kernel."""

import re
from pathlib import Path

import pytest

from tests.lab.demo import show
from tests.lab.machine import boot

README = Path(__file__).parents[1] / "README.md"


def shape(text: str) -> list[str]:
    """Lines with every number and every run of spaces made the same: they differ each time."""
    lines = (re.sub(r" +", " ", re.sub(r"\b\d+\b", "N", line)) for line in text.splitlines())
    return [line.rstrip() for line in lines]


@pytest.mark.lab
def test_the_session_in_the_readme_is_the_one_that_is_printed() -> None:
    match = re.search(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert match is not None
    told: list[str] = []
    with boot("newest", "two") as lab:
        show(lab, told.append)
    session = "".join(told)
    assert shape(session) == shape(match[1])
    without, with_pmuctl = session.split("# The same VM again")
    assert all(int(n) == 0 for n in re.findall(r"cycle counter (\d+)", without))
    assert all(int(n) > 0 for n in re.findall(r"cycle counter (\d+)", with_pmuctl))
