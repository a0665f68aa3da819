# SPDX-License-Identifier: Apache-2.0
"""The command tree for completion: commands, options, operands, and the kinds of their values."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from pmuctl.cli.app import NOUNS, VERBS, root
from pmuctl.cli.command_line import find_commands
from pmuctl.cli.help_page import COLUMNS
from pmuctl.model.kvm_caps import ATTR_NAMES
from pmuctl.model.symptoms.table import SYMPTOMS
from pmuctl.value import value

KINDS = {
    "PMU": "pmu",
    "VM": "vm",
    "COLS": "columns",
    "CPUSET": "cpus",
    "WHERE": "where",
    "KEY VALUE": "settings",
    "VMM ARG": "command",
    "PATH": "file",
    "SOCKET": "file",
    "DIR": "directory",
}
"""Metavar → kind of its values. A metavar that is not here and has no choices is free text."""

WORDS: Mapping[str, Sequence[str]] = {
    "ATTR": tuple(ATTR_NAMES.values()),
    "TEXT": tuple(symptom.id for symptom in SYMPTOMS),
    "COMMAND": (*NOUNS, *VERBS),
    "VERB": tuple(dict.fromkeys(verb for noun in NOUNS for verb in find_commands(root(), noun))),
}
"""Metavar → words to offer, although the parser accepts others, too."""


@value(kw_only=True)
class Value:
    """The value of an option or an operand: its metavar, and its kind or its fixed words."""

    metavar: str
    kind: str = ""
    words: Sequence[str] = ()
    is_repeated: bool = False


@value(kw_only=True)
class Option:
    """One option with its spellings; an option without a value is a flag."""

    names: Sequence[str]
    help: str
    value: Value | None = None
    is_repeated: bool = False


@value(kw_only=True)
class Node:
    """A command or a group of commands; `path` has its words and is empty for pmuctl itself."""

    path: tuple[str, ...]
    help: str
    options: Sequence[Option]
    operands: Sequence[Value] = ()
    columns: Sequence[tuple[str, str]] = ()
    nodes: "Sequence[Node]" = ()

    def walk(self) -> "Iterator[Node]":
        """Yield this node and all below it, in the order of the help."""
        yield self
        for node in self.nodes:
            yield from node.walk()


def read_tree() -> Node:
    """Return the whole command tree, importing the module of every command."""
    command = root()
    names = command.context_settings["help_option_names"]
    return _build_node(command, (), Option(names=names, help="Show this message and exit"))


def _build_node(command: Any, path: tuple[str, ...], help_option: Option) -> Node:
    options = [_build_option(param) for param in _select_params(command, "option")]
    nodes = [
        _build_node(command.get_command(None, name), (*path, name), help_option)
        for name in getattr(command, "commands", ())
    ]
    return Node(
        path=path,
        help=_first_line(command.help),
        options=[*(option for option in options if option), help_option],
        operands=[_build_value(param) for param in _select_params(command, "argument")],
        columns=_read_columns(" ".join(path)),
        nodes=nodes,
    )


def _select_params(command: Any, kind: str) -> list[Any]:
    return [param for param in command.params if param.param_type_name == kind]


def _build_option(param: Any) -> Option | None:
    """Return the option of a parameter, None if it is hidden."""
    if param.hidden:
        return None
    names = sorted([*param.opts, *param.secondary_opts], key=len)
    has_value = not param.is_flag and not param.count
    return Option(
        names=names,
        help=_first_line(param.help),
        value=_build_value(param) if has_value else None,
        is_repeated=param.count or param.multiple,
    )


def _build_value(param: Any) -> Value:
    metavar = re.sub(r"[\[\].]", "", param.metavar or param.name.upper())
    return Value(
        metavar=metavar,
        kind=KINDS.get(metavar, ""),
        words=getattr(param.type, "choices", None) or WORDS.get(metavar, ()),
        is_repeated=param.nargs == -1,
    )


def _read_columns(command: str) -> list[tuple[str, str]]:
    """Return the name and the help of each column that a command can print."""
    if command not in COLUMNS:
        return []
    module, _, name = COLUMNS[command].partition(".")
    columns = getattr(import_module(f"pmuctl.render.{module}"), name)
    return [(column.name, column.help) for column in columns]


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0].rstrip(".")
