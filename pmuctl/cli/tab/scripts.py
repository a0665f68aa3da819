# SPDX-License-Identifier: Apache-2.0
"""Completion scripts, made by writing the command tree into the template of a shell."""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from pmuctl.cli.options import KEYS
from pmuctl.cli.tab.command_tree import Node, Option, Value
from pmuctl.model.event_filter import Action

TEMPLATES = Path(__file__).parents[2] / "data" / "completion"

KEY_HELP = {
    "pmu": "the PMU that the VM counts with",
    "counters": "the number of event counters",
    "affinity": "the CPUs of the vCPU threads",
    "filter": "the events that the VM can count; must be last",
}
"""Key of `vm set` → its description, in shells that show one."""


class Shell(StrEnum):
    """A shell that pmuctl has a completion script for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"

    @property
    def file(self) -> str:
        """The file name of its script in completions/ and of its template."""
        return "_pmuctl" if self is Shell.ZSH else f"pmuctl.{self}"


def write_script(shell: Shell, tree: Node) -> str:
    """Return the completion script of a shell for a command tree."""
    write: dict[Shell, Callable[[Node], dict[str, str]]] = {
        Shell.BASH: _write_bash_parts,
        Shell.ZSH: _write_zsh_parts,
        Shell.FISH: _write_fish_parts,
    }
    text = (TEMPLATES / shell.file).read_text(encoding="utf-8")
    made = f"# Made by `pmuctl completion {shell}` from the command tree: do not change it here."
    for mark, part in ({"MADE": made} | write[shell](tree)).items():
        text = text.replace(f"@{mark}@", part.rstrip("\n"))
    return text


def quoted(text: str) -> str:
    """Quote a text as one word of bash or zsh."""
    return "'" + text.replace("'", "'\\''") + "'"


def _iter_assignment(name: str, words: Sequence[str], indent: str) -> Iterator[str]:
    """Yield the lines of an array assignment, one word per line if there are several."""
    if len(words) < 2:
        yield f"{indent}{name}=({' '.join(words)})"
        return
    yield f"{indent}{name}=("
    yield from (f"{indent}    {word}" for word in words)
    yield f"{indent})"


# bash


def _write_bash_parts(tree: Node) -> dict[str, str]:
    return {
        "TREE": "\n".join(line for node in tree.walk() for line in _iter_bash_node(node)),
        "KEYS": " ".join(KEYS),
        "ACTIONS": " ".join(Action),
    }


def _iter_bash_node(node: Node) -> Iterator[str]:
    yield f"    {quoted(' '.join(node.path))})"
    if node.nodes:
        yield f"        commands={quoted(' '.join(child.path[-1] for child in node.nodes))}"
    if node.operands:
        kinds = [_write_bash_kind(value) + "..." * value.is_repeated for value in node.operands]
        yield f"        operands=({' '.join(quoted(kind) for kind in kinds)})"
    if node.columns:
        yield from _iter_assignment("columns", [name for name, _ in node.columns], " " * 8)
    yield from _iter_assignment(
        "options", [quoted(_write_bash_option(option)) for option in node.options], " " * 8
    )
    yield "        ;;"


def _write_bash_option(option: Option) -> str:
    value = f":{_write_bash_kind(option.value)}" if option.value else ""
    return "|".join(option.names) + "*" * option.is_repeated + value


def _write_bash_kind(value: Value) -> str:
    return f"={' '.join(value.words)}" if value.words else value.kind or "text"


# zsh

ZSH_ACTIONS = {
    "pmu": "_pmuctl_pmus",
    "vm": "_pmuctl_vms",
    "columns": "_pmuctl_columns",
    "cpus": "_pmuctl_cpus",
    "where": "_pmuctl_where",
    "settings": "_pmuctl_settings",
    "command": "_pmuctl_command",
    "file": "_files",
    "directory": "_files -/",
    "": " ",
}


def _write_zsh_parts(tree: Node) -> dict[str, str]:
    helps = {
        Action.ALLOW: "let the guest count these events",
        Action.DENY: "do not let the guest count these events",
    }
    return {
        "TREE": "\n".join(line for node in tree.walk() for line in _iter_zsh_node(node)),
        "KEY_HELP": " ".join(quoted(f"{key}:{KEY_HELP.get(key, key)}") for key in KEYS),
        "ACTIONS": " ".join(quoted(f"{action}:{helps[action]}") for action in Action),
    }


def _iter_zsh_node(node: Node) -> Iterator[str]:
    name = " ".join(node.path)
    # the first operand of a verb without a noun stands where other commands have their verb
    pattern = quoted(f"{name} ") + "*" if len(node.path) == 1 and not node.nodes else ""
    yield f"    ({pattern or quoted(name if len(node.path) == 2 else f'{name} ')})"
    if node.nodes:
        helps = [quoted(f"{child.path[-1]}:{child.help}") for child in node.nodes]
        yield from _iter_assignment("subcommands", helps, " " * 8)
    if node.columns:
        columns = [quoted(f"{column}:{help}") for column, help in node.columns]
        yield from _iter_assignment("columns", columns, " " * 8)
    specs = [_write_zsh_option(option) for option in node.options]
    specs += [quoted("1:command:_pmuctl_commands")] if node.nodes else []
    specs += [
        quoted(_write_zsh_operand(operand, number))
        for number, operand in enumerate(node.operands, start=1)
    ]
    yield f"        _pmuctl_arguments {len(node.path)} \\"
    yield from (f"            {spec} \\" for spec in specs[:-1])
    yield f"            {specs[-1]} && ret=0"
    yield "        ;;"


def _write_zsh_option(option: Option) -> str:
    value = f":{_write_zsh_value(option.value)}" if option.value else ""
    help = "".join(f"\\{char}" if char in "[]\\:" else char for char in option.help)
    joined = {True: "=", False: "+"}
    names = [
        name + (joined[name.startswith("--")] if option.value else "") for name in option.names
    ]
    others = "*" if option.is_repeated else f"({' '.join(option.names)})"
    spellings = "{" + ",".join(names) + "}" if len(names) > 1 else names[0]
    return quoted(others) + spellings + quoted(f"[{help}]{value}")


def _write_zsh_operand(value: Value, number: int) -> str:
    if not value.is_repeated:
        return f"{number}:{_write_zsh_value(value)}"
    if value.words:
        return f"*:{value.metavar}:{{compadd -F words -- {' '.join(value.words)}}}"
    if value.kind == "command":
        # this word and all after it are the command line of another program
        return f"(-)*::{_write_zsh_value(value)}"
    # with ::: the action sees the words of this operand only
    return f"*{':::' if value.kind == 'settings' else ':'}{_write_zsh_value(value)}"


def _write_zsh_value(value: Value) -> str:
    action = f"({' '.join(value.words)})" if value.words else ZSH_ACTIONS[value.kind]
    return f"{value.metavar}:{action}"


# fish

FISH_VALUES = {
    "pmu": "-x -a '(__pmuctl_pmus)'",
    "vm": "-x -a '(__pmuctl_vms)'",
    "columns": "-x -a '(__pmuctl_columns)'",
    "cpus": "-x -a '(__pmuctl_cpus)'",
    "where": "-x -a '(__pmuctl_where)'",
    "settings": "-x -a '(__pmuctl_settings)'",
    "command": "-x -a '(__pmuctl_command)'",
    "file": "-r -F",
    "directory": "-x -a '(__fish_complete_directories)'",
    "": "-x",
}


def _write_fish_parts(tree: Node) -> dict[str, str]:
    nodes = list(tree.walk())
    with_value = [option for node in nodes for option in node.options if option.value]
    return {
        "TREE": "\n".join([*_iter_fish_operands(nodes), *_iter_fish_options(nodes)]),
        "TAKING": " ".join(dict.fromkeys(name for option in with_value for name in option.names)),
        "COLUMNS": "\n".join(line for node in nodes for line in _iter_fish_columns(node)),
        "KEYS": " ".join(KEYS),
        "ACTIONS": " ".join(Action),
        "KEY_HELP": "\n".join(line for key in KEYS for line in _iter_fish_key(key)),
    }


def _iter_fish_key(key: str) -> Iterator[str]:
    yield f"            case {key}"
    yield f"                printf '%s\\t%s\\n' {key} {fish_quoted(KEY_HELP.get(key, key))}"


def fish_quoted(text: str) -> str:
    """Quote a text as one word of fish."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _iter_fish_columns(node: Node) -> Iterator[str]:
    if node.columns:
        words = " ".join(f"{name} {fish_quoted(help)}" for name, help in node.columns)
        yield f"        case {fish_quoted(' '.join(node.path))}"
        yield f"            __pmuctl_list {words}"


def _iter_fish_operands(nodes: Sequence[Node]) -> Iterator[str]:
    for node in nodes:
        path = " ".join(node.path)
        for child in node.nodes:
            yield (
                f"complete -c pmuctl -n '__pmuctl_next \"{path}\" 0' "
                f"-a {child.path[-1]} -d {fish_quoted(child.help)}"
            )
        for number, operand in enumerate(node.operands):
            more = " more" * operand.is_repeated
            value = _write_fish_value(operand).removeprefix("-x").removeprefix("-r").strip()
            if operand.words and operand.is_repeated:
                value = f"-a '(__pmuctl_unused {' '.join(operand.words)})'"
            if value:
                yield f"complete -c pmuctl -n '__pmuctl_next \"{path}\" {number}{more}' {value}"


def _iter_fish_options(nodes: Sequence[Node]) -> Iterator[str]:
    """Yield one line per option, with all commands that accept it."""
    paths: dict[str, tuple[Option, list[str]]] = {}
    for node in nodes:
        for option in node.options:
            paths.setdefault(repr(option), (option, []))[1].append(" ".join(node.path))
    for option, commands in paths.values():
        names = " ".join("" if option.is_repeated else name for name in option.names).strip()
        where = " ".join(f'"{command}"' for command in commands)
        spellings = " ".join(
            f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}"
            for name in option.names
        )
        value = f" {_write_fish_value(option.value)}" if option.value else ""
        condition = f"__pmuctl_takes {names}{' ' * bool(names)}-- {where}"
        yield (
            f"complete -c pmuctl -n '{condition}' {spellings}{value} -d {fish_quoted(option.help)}"
        )


def _write_fish_value(value: Value) -> str:
    if value.words:
        return f"-x -a {fish_quoted(' '.join(value.words))}"
    return FISH_VALUES[value.kind]
