# SPDX-License-Identifier: Apache-2.0
"""The whole command tree, held to the rules that every command, option and column keeps."""

import inspect
import re
import shlex
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import pytest

import pmuctl.render
from pmuctl.cli.app import NOUNS, VERBS, root
from pmuctl.cli.help_page import COLUMNS, EXAMPLES
from pmuctl.errors import ExitStatus
from pmuctl.render.columns import Column
from tests.command_tree import COMMAND_PATHS, TREE, Path_, leaf, parse_words

ROOT = Path(__file__).parents[1]


def _is_sentence(text: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z\[].*[^.]\.", text, re.DOTALL)) and "  " not in text


def _parameters() -> list[tuple[Path_, Any]]:
    return [(path, its) for path in COMMAND_PATHS for its in leaf(path).params]


FORMS = {("host", "capabilities", "attr"), ("vm", "set", "settings")}
"""Arguments whose help is the form of their words, and no sentence."""


@pytest.mark.parametrize("path", TREE, ids=" ".join)
def test_every_command_has_a_help_that_begins_with_one_sentence(path: Path_) -> None:
    help = TREE[path].help or ""
    paragraphs = inspect.cleandoc(help).split("\n\n")
    assert _is_sentence(paragraphs[0].replace("\n", " ")), help
    assert all(paragraph.endswith(".") for paragraph in paragraphs)


@pytest.mark.parametrize(
    ("path", "its"), _parameters(), ids=lambda its: getattr(its, "name", None) or " ".join(its)
)
def test_every_option_and_argument_has_a_help_of_one_sentence(path: Path_, its: Any) -> None:
    assert its.help
    if (*path, its.name) not in FORMS:
        assert _is_sentence(its.help), its.help
    assert len(its.help) <= 100


def test_every_command_is_called_as_it_is_typed() -> None:
    assert [path for path in COMMAND_PATHS if leaf(path).name != path[-1]] == []


@pytest.mark.parametrize("noun", NOUNS)
def test_the_help_of_a_noun_has_whole_sentences(noun: str) -> None:
    group = root().get_command(None, noun)
    text = group.get_help(group.make_context(noun, [], resilient_parsing=True, terminal_width=80))
    assert "..." not in text.partition("Commands:")[2]


def test_the_table_of_nouns_is_the_help_of_their_groups() -> None:
    for name, help in {**NOUNS, **VERBS}.items():
        assert inspect.cleandoc(TREE[(name,)].help).split("\n\n")[0] == help


OWN_HELP = {("run", "timeout"), ("run", "json"), ("monitor", "format")}
"""Options that mean what they mean elsewhere, but whose command can say it more exactly."""


def test_no_option_is_used_with_two_meanings() -> None:
    usual = {
        name: its.help
        for path, its in _parameters()
        for name in its.opts
        if (*path, its.name) not in OWN_HELP
    }
    meanings: dict[str, set[tuple[object, ...]]] = {}
    for path, its in _parameters():
        if its.param_type_name == "option":
            for name in (*its.opts, *its.secondary_opts):
                help = usual[name] if (*path, its.name) in OWN_HELP else its.help
                meaning = (help, its.metavar, its.is_flag, its.count, tuple(its.opts))
                meanings.setdefault(name, set()).add(meaning)
    assert {name: its for name, its in meanings.items() if len(its) > 1} == {}


def test_an_argument_has_the_same_words_wherever_it_is_taken() -> None:
    meanings: dict[str, set[str]] = {}
    for _, its in _parameters():
        if its.param_type_name == "argument":
            for word in re.findall(r"[A-Z]+", its.metavar):
                number = "one" if its.nargs == 1 else "several"
                meanings.setdefault(f"{number} {word}", set()).add(its.help)
    assert {word: its for word, its in meanings.items() if len(its) > 1} == {}


def test_options_are_written_as_options_are() -> None:
    for _, its in _parameters():
        if its.param_type_name == "option":
            assert all(re.fullmatch(r"-[A-Za-z]|--[a-z]+(-[a-z]+)*", name) for name in its.opts)
            assert any(name.startswith("--") for name in its.opts)
            takes_value = not (its.is_flag or its.count)
            assert bool(its.metavar) == takes_value, its.opts
            assert not its.metavar or re.fullmatch("[A-Z]+", its.metavar)


@pytest.mark.parametrize("path", COMMAND_PATHS, ids=" ".join)
def test_every_command_is_documented(path: Path_) -> None:
    assert (ROOT / f"man/pmuctl-{path[0]}.1").is_file()
    assert f"`pmuctl {' '.join(path)}" in (ROOT / "README.md").read_text(encoding="utf-8")


def _tables() -> Iterator[tuple[str, Sequence[Column[Any]]]]:
    for module in iter_modules(pmuctl.render.__path__):
        for name, its in vars(import_module(f"pmuctl.render.{module.name}")).items():
            if name.endswith("_COLUMNS"):
                yield f"{module.name}.{name}", its


@pytest.mark.parametrize("table", list(_tables()), ids=lambda table: table[0])
def test_columns_and_json_keys(table: tuple[str, Sequence[Column[Any]]]) -> None:
    _, columns = table
    names, keys = [its.name for its in columns], [its.key for its in columns]
    assert len(set(names)) == len(names)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Z]+(-[A-Z]+)*", name) for name in names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", key) for key in keys)
    assert columns[0].shown
    for its in columns:
        assert re.fullmatch(r"[a-zA-Z/0-9].*[^.]", its.help), "a phrase, no sentence"
        assert not (its.nested and its.is_number)


def test_the_help_tells_every_exit_status() -> None:
    epilog = root().epilog or ""
    told = {int(number) for number in re.findall(r"\b(\d+) [a-zA-Z]", epilog)}
    assert told == {int(status) for status in ExitStatus}


def _read_help(path: Path_) -> list[str]:
    """Return the help of a command as a terminal of 80 columns has it."""
    command = leaf(path)
    context = command.make_context(
        " ".join(("pmuctl", *path)), [], resilient_parsing=True, terminal_width=80
    )
    help: str = command.get_help(context)
    return help.splitlines()


@pytest.mark.parametrize("path", COMMAND_PATHS, ids=" ".join)
def test_the_help_of_a_command_has_two_examples_that_it_takes(path: Path_) -> None:
    name = " ".join(path)
    lines = _read_help(path)
    examples = EXAMPLES[name]
    assert lines[-3].startswith("Examples")
    assert lines[-2:] == [f"  {line}" for line in examples]
    assert examples[0].startswith(f"pmuctl {name}")
    for line in examples:
        parse_words(shlex.split(line)[1:])


@pytest.mark.parametrize("path", COMMAND_PATHS, ids=" ".join)
def test_the_help_of_a_command_names_its_columns_and_its_page(path: Path_) -> None:
    name, text = " ".join(path), "\n".join(_read_help(path))
    page = re.search(r"^Examples, more in (\S+)\((\d)\):$", text, re.MULTILINE)
    assert page
    assert (ROOT / f"man/{page[1]}.{page[2]}").is_file()
    assert ("Columns, for -o:" in text) == (name in COLUMNS)
    if name in COLUMNS:
        module, _, table = COLUMNS[name].partition(".")
        columns = getattr(import_module(f"pmuctl.render.{module}"), table)
        assert {column.name for column in columns} <= set(text.split())


LONG_HELP = {("monitor",)}
"""Commands with more to say than a screen holds: the types of its events."""


@pytest.mark.parametrize("path", sorted({*COMMAND_PATHS} - LONG_HELP), ids=" ".join)
def test_the_help_of_a_command_fits_a_screen(path: Path_) -> None:
    lines = _read_help(path)
    assert len(lines) <= 24, "\n".join(lines)
    assert max(map(len, lines)) <= 80


def test_the_list_of_commands_fits_a_screen() -> None:
    text = root().get_help(root().make_context("pmuctl", [], resilient_parsing=True))
    assert len(text.splitlines()) <= 24, text
