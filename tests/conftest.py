# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests: captured machines as roots to read from."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

DUMPS = Path(__file__).parent / "dumps"


def unpack(dump: Path, root: Path) -> None:
    """Lay out a dump below `root`: lines of path, kind (dir, file, link) and a JSON string."""
    for line in dump.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        path, kind, value = line.split("\t")
        content = json.loads(value)
        target = root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "dir":
                target.mkdir(exist_ok=True)
            case "file":
                target.write_text(content, encoding="utf-8", newline="")
            case "link":
                target.symlink_to(content)
            case _:
                raise ValueError(f"{dump}: kind {kind!r} of {path}")


@pytest.fixture
def dump(tmp_path: Path) -> Callable[[str], Path]:
    """Unpacks tests/dumps/NAME.txt and gives the root to pass to `Sysfs` or --sysroot."""

    def unpacked(name: str) -> Path:
        root = tmp_path / name
        unpack(DUMPS / f"{name}.txt", root)
        return root

    return unpacked
