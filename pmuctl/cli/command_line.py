# SPDX-License-Identifier: Apache-2.0
"""Command lines as words: what is read of one before it is parsed, and the one to type instead."""

import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from pmuctl.errors import WrongWordError, command

RUN_VALUES = ("--name", "--pmu", "--filter", "--affinity", "--timeout")
"""The options of `pmuctl run` that take the next word as their value."""


def select_own_words(argv: Sequence[str]) -> Sequence[str]:
    """Return the words that can be options of pmuctl: not those after `--`, nor those of a VMM."""
    words = argv[: argv.index("--")] if "--" in argv else argv
    if not words or words[0] != "run":
        return words
    end = 1
    while end < len(words) and words[end].startswith("-"):
        end += 2 if words[end] in RUN_VALUES else 1
    return words[:end]


def read_flags(argv: Sequence[str]) -> list[str]:
    """Return the letters of short options, and of --json and --verbose.

    An error may occur before the options are parsed, or because they cannot be.
    """
    long = {"--json": "J", "--verbose": "v"}
    return [
        long.get(word, "") if word.startswith("--") else word[1:]
        for word in select_own_words(argv)
        if word.startswith("-")
    ]


def wants_json(argv: Sequence[str]) -> bool:
    if any("J" in flags for flags in read_flags(argv)):
        return True
    words = [*select_own_words(argv), ""]
    return any(
        f"{word}={after}".startswith(("--format=json", "--format=json="))
        for word, after in pairwise(words)
    )


def find_sysroot(argv: Sequence[str]) -> str | None:
    """Return the value of --sysroot, None if it is not given."""
    words = select_own_words(argv)
    for word, after in pairwise((*words, "")):
        if word == "--sysroot" or word.startswith("--sysroot="):
            return word.partition("=")[2] or after or None
    return None


def keep_sysroot(root: Any, fix: str, tree: str) -> str:
    """Return a fix, with --sysroot if it is a command that takes that: it is for the same host."""
    try:
        name, *words = shlex.split(fix)
    except ValueError:  # prose with an apostrophe
        return fix
    line = (*words, "--sysroot", tree)
    is_whole = find_sysroot(words) is not None or "--help" in words
    if name != "pmuctl" or is_whole or not is_parsed(root, line):
        return fix
    return command(*line)


def find_commands(root: Any, path: str) -> Sequence[str]:
    """Return the commands of a group, none of a word that is no group."""
    group = root
    for name in path.split():
        group = group.get_command(None, name)
    return tuple(getattr(group, "apps", ()))


def find_path(root: Any, words: Sequence[str]) -> str:
    """Return the commands that a command line begins with, "vm set", as far as they exist."""
    path = ""
    for word in words:
        if word not in find_commands(root, path):
            break
        path = f"{path} {word}".strip()
    return path


def is_parsed(root: Any, words: Sequence[str]) -> bool:
    """Return whether a command line can be parsed; it is not carried out."""
    from typer import Exit

    target, rest = root, [*words]
    while rest and hasattr(target, "apps") and rest[0] in target.apps:
        target = target.get_command(None, rest.pop(0))
    if target is root:
        return [*words] == ["--version"]
    if {"-h", "--help"} & {*rest}:  # parsing it would print the help
        return True
    if hasattr(target, "apps"):
        return False
    try:
        target.make_context("pmuctl", rest)
    except Exit:
        return True
    except Exception as error:
        if not any(cls.__name__ == "ClickException" for cls in type(error).__mro__):
            raise
        return False
    return True


def make_line(root: Any, words: Sequence[str], length: int) -> str:
    """Return a command line if it can be parsed, else the help of its first `length` words.

    What follows them may lack an argument, or have one too many.
    """
    return command(*words) if is_parsed(root, words) else command(*words[:length], "--help")


def correct_line(words: Sequence[str], error: WrongWordError) -> str | None:
    """Return a command line with the right words in place of wrong ones, quoted for a shell.

    Return None if the wrong ones are not found in it. The last place counts: a VM may be called
    like an event.
    """
    wrong, count = list(error.words), len(error.words)
    for at in range(len(words) - count, -1, -1):
        if [*words[at : at + count]] == wrong:
            return command(*words[:at], *error.right, *words[at + count :])
        head = words[at].removesuffix(wrong[0])
        if head.endswith("=") and [*words[at + 1 : at + count]] == wrong[1:] and count > 1:
            return command(*words[:at], head + " ".join(error.right), *words[at + count :])
    if count != 1 or len(error.right) != 1:
        return None
    for at in range(len(words) - 1, -1, -1):
        if (corrected := _replace_part(words[at], wrong[0], error.right[0])) is not None:
            return command(*words[:at], corrected, *words[at + 1 :])
    return None


def _replace_part(text: str, wrong: str, right: str) -> str | None:
    """Return a word with one of its parts replaced, such as an event of a list; None if it has
    no such part."""
    parts = re.split(r"([\s,=])", text)
    if wrong in parts:
        parts[parts.index(wrong)] = right
        return "".join(parts)
    head, equals, value = text.partition("=")  # --pmu=cpus=2-3
    return f"{head}={right}" if equals and value == wrong else None
