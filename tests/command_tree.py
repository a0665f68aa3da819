# SPDX-License-Identifier: Apache-2.0
"""The commands of pmuctl, their options and arguments, as Typer knows them."""

from collections.abc import Iterator, Sequence
from typing import Any

from pmuctl.cli.app import root

Path_ = tuple[str, ...]
"""A command as it is typed: ("vm", "set")."""


def walk(command: Any, path: Path_ = ()) -> Iterator[tuple[Path_, Any]]:
    """Every group and every command, with the words that lead to it."""
    yield path, command
    if hasattr(command, "list_commands"):
        for name in command.list_commands(None):
            yield from walk(command.get_command(None, name), (*path, name))


TREE: dict[Path_, Any] = dict(walk(root()))
COMMAND_PATHS = [path for path, its in TREE.items() if not hasattr(its, "list_commands")]
"""The commands that do something, `pmuctl vm set` and its like."""


def leaf(path: Path_) -> Any:
    """The command at a path."""
    return TREE[path]


def options_of(path: Path_) -> set[str]:
    """The options of a command, short and long, but for the help."""
    params = [its for its in leaf(path).params if its.param_type_name == "option"]
    return {name for its in params for name in (*its.opts, *its.secondary_opts)}


def parse_words(words: Sequence[str]) -> None:
    """Read a command line without carrying it out; raises what the parser raises."""
    depth = next(n for n in range(len(words), 0, -1) if tuple(words[:n]) in COMMAND_PATHS)
    leaf(tuple(words[:depth])).make_context("pmuctl", list(words[depth:]))
