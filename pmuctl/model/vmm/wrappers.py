# SPDX-License-Identifier: Apache-2.0
"""Commands that execute another one, such as sudo, env or sh -c: what they execute, if certain."""

import re
import shlex
from collections.abc import Mapping, Sequence

from pmuctl.value import value


@value
class _Grammar:
    """The options of a wrapper that take the next word, and how many operands precede its command.

    `short` are letters, `long` names without dashes. With an option of `without` there is no
    command of its own.
    """

    short: str = ""
    long: Sequence[str] = ()
    operands: int = 0
    assigns: bool = False
    without: Sequence[str] = ()


_SUDO_LONG = (
    *("user", "group", "host", "prompt", "close-from", "role", "type", "other-user", "chdir"),
    *("chroot", "command-timeout"),
)
_RUN_LONG = (
    *("unit", "property", "slice", "description", "machine", "host", "uid", "gid", "nice"),
    *("working-directory", "setenv", "service-type"),
)
_WRAPPERS: Mapping[str, _Grammar] = {
    "sudo": _Grammar("ughpCrtUDRT", _SUDO_LONG, assigns=True, without=("-e", "-l", "-v")),
    "doas": _Grammar("uCa"),
    "env": _Grammar("uC", ("unset", "chdir"), assigns=True, without=("-S", "--split-string")),
    "nice": _Grammar("n", ("adjustment",)),
    "ionice": _Grammar("cn", ("class", "classdata"), without=("-p", "-P", "-u")),
    "chrt": _Grammar("TPD", operands=1, without=("-p", "--pid", "-m", "--max")),
    "taskset": _Grammar(operands=1, without=("-p", "--pid")),
    "numactl": _Grammar(
        "iNmCpPw",
        (
            "interleave",
            "cpunodebind",
            "membind",
            "physcpubind",
            "preferred",
            "weighted-interleave",
        ),
        without=("-s", "-H", "--show", "--hardware"),
    ),
    "setsid": _Grammar(),
    "nohup": _Grammar(),
    "stdbuf": _Grammar("ioe", ("input", "output", "error")),
    "timeout": _Grammar("ks", ("kill-after", "signal"), operands=1),
    "time": _Grammar("fo", ("format", "output")),
    "flock": _Grammar("wE", ("timeout", "conflict-exit-code"), operands=1),
    "cgexec": _Grammar("g"),
    "runuser": _Grammar("ugGs", ("user", "group", "supp-group"), without=("-c", "-l", "-")),
    "systemd-run": _Grammar("upMHE", _RUN_LONG),
}
"""Program → its grammar, from its manual page; options may be joined (-nu root, -uroot)."""

_SHELLS = ("sh", "bash", "dash", "ash", "zsh", "ksh", "mksh")
_SHELL_LONG = ("rcfile", "init-file")
_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=.*", re.DOTALL)
_REDIRECTION = re.compile(r"\s[0-9]?(?:>>?|<)(?:&[0-9-]|\s*[\w./-]+)(?=\s|$)")
_COMPOUND = re.compile(r"[;&|<>()`{}\n#]|\$\(")
_NUMBER = re.compile(r"-[0-9]+")


def unwrap(command: Sequence[str]) -> Sequence[str]:
    """Return the command that the wrappers of a command line end in; itself if there is none.

    Return an empty list if that is not certain, as for a shell script.
    """
    while command:
        program = command[0].rpartition("/")[2]
        if program in _SHELLS:
            command = _find_shell_command(command[1:])
        elif program in _WRAPPERS and (program != "systemd-run" or "--scope" in command):
            command = _skip_options(command[1:], _WRAPPERS[program])
        else:
            return command
    return ()


def _skip_options(words: Sequence[str], grammar: _Grammar) -> Sequence[str]:
    """Return the command that follows a wrapper's options and operands; empty if there is none."""
    rest = [*words]
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        if any(word == other or word.startswith(f"{other}=") for other in grammar.without):
            return ()
        if _takes_next(word, grammar):
            rest = rest[1:]
    if rest[:1] == ["-"] and grammar.assigns:  # env - is env -i
        rest = rest[1:]
    while grammar.assigns and rest and _ASSIGNMENT.fullmatch(rest[0]):
        rest = rest[1:]
    rest = rest[grammar.operands :]
    return rest[1:] if rest[:1] == ["--"] and grammar.operands else rest


def _takes_next(option: str, grammar: _Grammar) -> bool:
    """Return whether the value of an option is the next word, not a part of the same."""
    if option.startswith("--"):
        return option[2:] in grammar.long
    letters = option[1:]
    at = next((i for i, letter in enumerate(letters) if letter in grammar.short), None)
    return at == len(letters) - 1 and not _NUMBER.fullmatch(option)


def _find_shell_command(words: Sequence[str]) -> Sequence[str]:
    """Return the simple command of `sh -c TEXT`; empty if there may be others, too."""
    rest, has_text = [*words], False
    while rest and rest[0][:1] in ("-", "+") and rest[0] != "--":
        word = rest.pop(0)
        if word[:2] == "--":
            rest = rest[word[2:] in _SHELL_LONG :]
            continue
        has_text = has_text or (word[0] == "-" and "c" in word[1:])
        rest = rest[word[-1] in "oO" :]
    rest = rest[rest[:1] == ["--"] :]
    if not has_text or not rest:
        return ()
    text = _REDIRECTION.sub("", rest[0].strip())
    if _COMPOUND.search(text):
        return ()
    try:
        parts = shlex.split(text)
    except ValueError:
        return ()
    while parts and (parts[0] == "exec" or _ASSIGNMENT.fullmatch(parts[0])):
        parts = parts[1:]
    return parts
