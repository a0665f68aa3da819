# SPDX-License-Identifier: Apache-2.0
"""The terminal sessions that the README shows."""

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def read_sessions() -> list[str]:
    """Return each as it stands there."""
    return re.findall(r"```console\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def shape(text: str) -> list[str]:
    """Lines with every time, number and run of spaces made the same: they differ each time."""
    text = re.sub(r"\b\d{4}-\d\d-\d\dT[\d:.+-]+", "TIME", text)
    lines = (re.sub(r" +", " ", re.sub(r"\b\d+\b", "N", line)) for line in text.splitlines())
    return [line.rstrip() for line in lines]
