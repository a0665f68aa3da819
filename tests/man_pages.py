# SPDX-License-Identifier: Apache-2.0
"""The manual pages, and the examples in them."""

from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "man").glob("*.[0-9]"))
MAIN, PROTOCOL = ROOT / "man/pmuctl.1", ROOT / "man/pmuctl-protocol.7"


def source(page: Path) -> list[str]:
    """The lines of a page."""
    return page.read_text(encoding="utf-8").splitlines()


def is_example(page: Path) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is part of a literal display."""
    inside = False
    for line in source(page):
        inside = inside or line.startswith(".Bd -literal")
        yield line, inside
        inside = inside and line != ".Ed"


def plain(text: str) -> str:
    """A line of mdoc without its escapes."""
    return text.replace("\\&", "").replace("\\-", "-").replace("\\e", "\\")


def examples(page: Path) -> list[tuple[str, list[str]]]:
    """Each `$ pmuctl ...` of a page with the lines of output that follow it."""
    found: list[tuple[str, list[str]]] = []
    out: list[str] = []
    for line, inside in is_example(page):
        if line.startswith("$ pmuctl "):
            out = []
            found.append((plain(line)[9:], out))
        elif not inside or line == ".Ed":
            out = []
        else:
            out.append(plain(line))
    return found
