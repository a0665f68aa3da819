# SPDX-License-Identifier: Apache-2.0
"""Commands and options of virsh, taskset and perf users, in pmuctl's words: a line to type.

All of them are refused, as typing errors are.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from shlex import join
from typing import Any

from pmuctl.cli.command_line import find_commands, is_parsed, make_line
from pmuctl.cli.near_misses.affinity import (
    correct_order,
    correct_taskset,
    make_pairs_error,
    pair_commands,
)
from pmuctl.cli.options import KEYS
from pmuctl.errors import UsageError, WrongWordError, command

_LIST_OR_SHOW = ("show", "info", "status", "state", "dominfo", "domstate", "inspect", "get")
"""Words that show one VM if one is named, and else list all."""

_COMMANDS: Mapping[str, Mapping[str, str]] = {
    "": {
        **dict.fromkeys(("list", "ls", "ps", "vms", "top"), "vm list"),
        **dict.fromkeys(_LIST_OR_SHOW, "vm show"),
        **dict.fromkeys(("vcpuinfo", "vcpucount", "vcpus", "threads"), "vm vcpus"),
        **dict.fromkeys(("set", "config", "edit"), "vm set"),
        **dict.fromkeys(("release", "resume", "continue", "cont", "unhold"), "vm release"),
        "wait": "vm wait",
        **dict.fromkeys(("pin", "taskset", "vcpupin"), "affinity set"),
        **dict.fromkeys(("align", "repair"), "affinity align"),
        "check": "affinity check",
        "pmus": "pmu list",
        **dict.fromkeys(("event", "events"), "pmu show"),
        **dict.fromkeys(("cpu", "cpus", "lscpu"), "pmu cpus"),
        **dict.fromkeys(("nodeinfo", "hostinfo"), "host info"),
        **dict.fromkeys(("capabilities", "domcapabilities", "attributes"), "host capabilities"),
        **dict.fromkeys(("snapshot", "capture"), "host snapshot"),
        **dict.fromkeys(("start", "create", "launch", "exec"), "run"),
        **dict.fromkeys(("watch", "log", "logs"), "monitor"),
        **dict.fromkeys(("diagnose", "checkup", "health"), "doctor"),
        **dict.fromkeys(("explain", "symptom"), "doctor --symptom"),
        "filter": "vm set",
        "version": "--version",
        "man": "help",
    },
    "vm": {
        **dict.fromkeys(("ls", "ps", "vms"), "vm list"),
        **dict.fromkeys((*_LIST_OR_SHOW[1:], "describe"), "vm show"),
        **dict.fromkeys(("vcpu", "vcpuinfo", "vcpucount", "cpus", "threads"), "vm vcpus"),
        **dict.fromkeys(("config", "edit", "change", "modify", "update", "apply"), "vm set"),
        **dict.fromkeys(("resume", "continue", "cont", "unpause", "unhold", "go"), "vm release"),
        **dict.fromkeys(("pin", "vcpupin"), "affinity set"),
        **dict.fromkeys(("align", "repair"), "affinity align"),
        **dict.fromkeys(("check", "affinity"), "affinity check"),
        **dict.fromkeys(("start", "create", "launch", "run"), "run"),
        **dict.fromkeys(("monitor", "watch", "events", "event"), "monitor"),
        "doctor": "doctor",
    },
    "pmu": {
        "ls": "pmu list",
        **dict.fromkeys(("info", "get", "inspect", "describe", "events", "event"), "pmu show"),
        **dict.fromkeys(("cpu", "lscpu"), "pmu cpus"),
    },
    "host": {
        **dict.fromkeys(("show", "list", "get", "status", "nodeinfo"), "host info"),
        **dict.fromkeys(("caps", "features", "attributes"), "host capabilities"),
        **dict.fromkeys(("capture", "save", "dump", "export"), "host snapshot"),
        "cpus": "pmu cpus",
        "pmus": "pmu list",
    },
    "affinity": {
        **dict.fromkeys(
            ("get", "show", "list", "ls", "status", "verify", "test"), "affinity check"
        ),
        **dict.fromkeys(("pin", "taskset", "vcpupin", "change"), "affinity set"),
        **dict.fromkeys(("repair", "fix", "restore", "auto", "reset"), "affinity align"),
    },
}
"""Group → word of another tool → what pmuctl calls that."""

_NOT_HERE: Mapping[tuple[str, ...], str] = {
    ("stop", "shutdown", "destroy", "kill", "reboot", "restart"): "ends or starts a VM",
    ("pause", "suspend", "save", "migrate", "console", "attach"): "controls a VM as it runs",
    ("emulatorpin", "iothreadpin"): "places its other threads",
    ("define", "undefine", "delete", "remove", "rm", "rename", "clone"): "keeps a list of VMs",
}
"""Words of managers of VMs for what pmuctl leaves to them → what only they do."""
_UNSET = ("unset", "reset", "clear")
_PERF = ("stat", "record", "report", "annotate", "script")
"""Words of perf for what pmuctl leaves to it."""

_VM = ("--vm", "--vms", "--domain", "--name", "--guest")
_ALL = ("--all", "-a", "-A", "--active")
_REPAIR = ("--fix", "--repair", "--apply")
_FLAGS = (*_ALL, *_REPAIR, "--follow", "-f", "--watch", "--check")
"""Options that take no value."""

_OPTIONS: Mapping[str, Mapping[str, str]] = {
    "vm set": {
        **dict.fromkeys(_VM, ""),
        **{f"--{key}": key for key in ("pmu", "counters", "affinity", "filter")},
    },
    "vm list": dict.fromkeys((*_ALL, *_VM), ""),
    "vm vcpus": dict.fromkeys((*_ALL, *_VM), ""),
    "vm show": dict.fromkeys(_VM, ""),
    "vm release": dict.fromkeys(_VM, ""),
    "monitor": dict.fromkeys(("--follow", "-f", "--watch", *_ALL, *_VM), ""),
    "doctor": dict.fromkeys((*_REPAIR, "--check", *_ALL, *_VM), ""),
    "vm wait": {**dict.fromkeys(("--state", "--until"), "--for"), **dict.fromkeys(_VM, "")},
    "affinity set": {
        **dict.fromkeys(("--cpu", "--cpus", "--cpu-list", "--cpulist", "-c", "--cpuset"), ""),
        **dict.fromkeys(("--vcpus",), "--vcpu"),
        **dict.fromkeys(_VM, ""),
    },
    "affinity align": {**dict.fromkeys(("-a", "-A"), "--all"), **dict.fromkeys(_VM, "")},
    "affinity check": dict.fromkeys((*_ALL, *_VM), ""),
    "pmu show": dict.fromkeys(("--pmu",), ""),
    "pmu list": dict.fromkeys(("--all", "-a", "--pmu"), ""),
    "run": {
        **dict.fromkeys(("--vm", "--vm-name", "-n"), "--name"),
        **dict.fromkeys(("--cpu", "--cpus", "--cpu-list", "--cpuset", "-c"), "--affinity"),
        **dict.fromkeys(("--events", "--event", "-e"), "--filter"),
    },
}
"""Command → option of another tool → what pmuctl calls that; empty if the word is to be left
out."""

_WHY = {
    **dict.fromkeys(
        (("doctor", option) for option in _REPAIR),
        "doctor changes nothing: it prints the commands that fix what it finds",
    )
}
"""Command and option → why it has none."""

_EVERYWHERE = {
    **dict.fromkeys(("--no-headers", "--no-header", "--no-headings", "--no-legend"), "-n"),
    **dict.fromkeys(("--nocolor", "--no-color"), "--color=never"),
    **dict.fromkeys(("--columns", "--cols", "--fields"), "-o"),
    "-j": "-J",
    **dict.fromkeys(("--debug", "--trace"), "-v"),
    **dict.fromkeys(("--yaml", "--xml"), "--json"),
    **dict.fromkeys(("--wide", "-w"), "--no-truncate"),
    **dict.fromkeys(("--noop", "--what-if", "--simulate", "--check"), "--dry-run"),
    **dict.fromkeys(("--root", "--prefix"), "--sysroot"),
}


def check_command(
    root: Any, path: str, args: Sequence[str], *, prefix: Sequence[str] = ()
) -> None:
    """Raise UsageError for a command that pmuctl calls otherwise, with the line to type.

    `path` is the group in which the first of `args` is no command, empty for the root; `prefix`
    is what stands before the command.
    """
    word, rest = args[0].lower(), [*args[1:]]
    group = f"pmuctl {path}".strip()
    right = _find_command(root, path, word, rest)
    if right is None:
        if not prefix:
            _check_other_tool(path, word, rest)
        fix = _correct_typing_error(root, path, args, prefix)
        if fix is not None:
            raise UsageError(f"{args[0]}: not a command of {group}", fix=fix)
        return
    is_name = len(rest) == 1 and not rest[0].startswith("-")
    if right == "run" and is_name and not prefix:  # of a VM, as managers of VMs take it
        raise UsageError(
            f"{args[0]}: not a command of pmuctl",
            why="pmuctl run starts a VM by the command line of its VMM: it knows none by name",
            fix=command("run", "--name", rest[0], "--hold", "--", "VMM", "ARG..."),
        )
    line, rest = _correct_operands(path, right, word, rest)
    raise UsageError(
        f"{args[0]}: not a command of {group}",
        fix=make_line(root, [*prefix, *line, *rest], len(line)),
    )


def _correct_operands(
    path: str, right: str, word: str, rest: list[str]
) -> tuple[list[str], list[str]]:
    """Return the words of the right command and what follows them, for what `word` takes."""
    has_options = any(other.startswith("-") for other in rest)
    if word == "vcpupin":  # DOMAIN VCPU CPULIST; without a list it shows where they may run
        if len(rest) == 3 and not has_options:
            return right.split(), [rest[0], rest[2], "--vcpu", rest[1]]
        return ["vm", "vcpus"], [] if has_options else rest[:1]
    if right == "affinity set" and len(rest) == 2 and (order := correct_order(*rest)):
        return right.split(), order
    if right == "--version":
        return [right], []
    if not path and " " in right and rest[:1] in (["list"], ["ls"]):
        return right.split(), rest[1:]
    if right == "vm show" and all(other.startswith("-") for other in rest):
        return ["vm", "list"], rest
    return right.split(), rest


def _check_other_tool(path: str, word: str, rest: Sequence[str]) -> None:
    """Raise UsageError for a command that only another tool has, with what to type instead."""
    if path in ("", "vm"):
        for others, what in _NOT_HERE.items():
            if word in others:
                vm = rest[:1] if rest and not rest[0].startswith("-") else ()
                raise UsageError(
                    f"{word}: not a command of pmuctl",
                    why=f"only its VMM, or what manages that, {what}",
                    fix=command("vm", *(("show", *vm) if vm else ("list", "-o", "NAME,PID,VMM"))),
                )
        if word in _UNSET:
            _refuse_unset(word, rest)
    words = rest if word == "perf" else (word, *rest)
    if not path and (word == "perf" or word in _PERF):
        raise UsageError(
            f"{word}: not a command of pmuctl",
            why="pmuctl counts no events: perf does, in the guest or on the host",
            fix=join(["perf", *words]),
        )


def _refuse_unset(word: str, rest: Sequence[str]) -> None:
    """Raise UsageError: what a VM was given holds until it ends, but other values do the same."""
    vm, *keys = rest or ["VM"]
    if vm in KEYS and keys:
        vm, keys = keys[0], [vm, *keys[1:]]
    by_key = {"filter": ("default", "allow"), "affinity": ("none",)}
    same = [(key, *by_key[key]) for key in ("affinity", "filter") if key in keys]
    whys = {"filter": "a filter that allows all events", "affinity": "affinity none"}
    if same:
        why = " and ".join(f"{whys[key]} is as good as none" for key, *_ in same)
        fix = command("vm", "set", vm, *(part for pair in same for part in pair))
    else:
        why = "KVM cannot take a setting back: it holds until the VM is started anew"
        fix = command("vm", "show", vm) if rest else command("vm", "set", "--help")
    raise UsageError(f"{word}: not a command of pmuctl", why=why, fix=fix)


def _correct_typing_error(
    root: Any, path: str, args: Sequence[str], prefix: Sequence[str]
) -> str | None:
    """Return the line with the command that a word nearly is, or that stands after its object.

    Return None if there is no such command.
    """
    group, commands = path.split(), find_commands(root, path)
    name, *rest = args
    word = name.lower()
    if path and not prefix and rest and rest[0] in commands:
        swapped = [*group, rest[0], name, *rest[1:]]
        if is_parsed(root, swapped):
            return command(*swapped)
    near = [[*group, near] for near in get_close_matches(word, commands, n=3, cutoff=0.6)]
    others = get_close_matches(word, _COMMANDS.get(path, {}), n=1, cutoff=0.8)
    near += [_COMMANDS[path][other].split() for other in others]
    key = word.removeprefix("set-")
    if path == "vm" and key in KEYS and key != word and rest:
        near, rest = [["vm", "set", rest[0], key]], rest[1:]
    elif path == "affinity" and rest and not near:  # it has been left out, as taskset has none
        order = correct_order(name, rest[0]) if len(rest) == 1 else None
        near, rest = [[*group, "set", *(order or [name])]], [] if order else rest
    lines = [[*prefix, *line, *rest] for line in near]
    whole = next((line for line in lines if is_parsed(root, line)), None)
    if whole is not None:
        return command(*whole)
    return command(*prefix, *near[0], "--help") if near else None


def _find_command(root: Any, path: str, word: str, rest: list[str]) -> str | None:
    if path and word == "help":
        return f"help {path}"
    if word in find_commands(root, path):
        return f"{path} {word}".strip()
    if not path and word.endswith("s") and rest and rest[0] in find_commands(root, word[:-1]):
        return f"{word[:-1]} {rest.pop(0)}"
    if not path and rest:  # verb and noun
        for noun in (rest[0], rest[0].removesuffix("s")):
            if noun in find_commands(root, "") and word in find_commands(root, noun):
                del rest[0]
                return f"{noun} {word}"
    if word in _COMMANDS.get(path, {}):
        return _COMMANDS[path][word]
    parts = word.split("-")
    if not path and len(parts) == 2:  # virsh's noun-verb, and verb-noun
        for noun, verb in (parts, reversed(parts)):
            noun = noun if noun in find_commands(root, "") else noun.removesuffix("s")
            if verb in find_commands(root, noun):
                return f"{noun} {verb}"
    return None


def check_option(
    root: Any, path: str, option: str, words: Sequence[str], rest: Sequence[str] = ()
) -> None:
    """Raise WrongWordError for an option that pmuctl calls otherwise.

    `path` is the command that lacks the `option`; `words` is the command line, without the `rest`
    that belongs to a VMM.
    """
    if path == "affinity set" and not rest:
        operands = words[len(path.split()) :]
        if (taskset := correct_taskset(operands)) is not None:
            raise WrongWordError(
                f"{option}: no option of pmuctl {path}",
                words=tuple(operands),
                right=tuple(taskset),
                why="taskset takes a process, this command a VM",
            )
    if path in _OF_ONE_VM and option in _ALL[:1]:
        raise UsageError(f"{option}: no option of pmuctl {path}", why=_ONE_VM, fix=_LIST_NAMES)
    right = {**_EVERYWHERE, **_OPTIONS.get(path, {})}.get(option)
    given = next((word for word in words if word.partition("=")[0] == option), None)
    if right is None or given is None:
        return
    value = (given.partition("=")[2],) if "=" in given else ()
    if value and option in _FLAGS:
        return
    corrected = (*((right,) if right else ()), *value)
    at = words.index(given)
    if not is_parsed(root, [*words[:at], *corrected, *words[at + 1 :], *rest]):
        return
    raise WrongWordError(
        f"{option}: no option of pmuctl {path}",
        words=(given,),
        right=corrected,
        why=_WHY.get((path, option)),
    )


_OF_ONE_VM = ("vm set", "vm release", "vm show", "vm wait", "affinity set")
_ONE_VM = "this command takes one VM, by its name"
_LIST_NAMES = command("vm", "list", "-o", "NAME,STATE,WINDOW")


def check_extra(root: Any, path: str, extra: Sequence[str], words: Sequence[str]) -> None:
    """Raise UsageError for a list that was written as several words, `extra` the last.

    It may be one of CPUs, or of VMs. The rest is as in `check_option`.
    """
    at = next((i for i in range(len(words)) if [*words[i : i + len(extra)]] == [*extra]), 0)
    if at < 2 or not extra:
        return
    wrong = (words[at - 1], *extra)
    before, after = words[: at - 1], words[at + len(extra) :]
    if path == "affinity set":
        if (fix := pair_commands(words[2], wrong)) is not None:
            raise make_pairs_error(" ".join(wrong), fix)
        right = ",".join(word.strip(",") for word in wrong)
        if is_parsed(root, [*before, right, *after]):
            what = "CPUs are one list without spaces"
            raise WrongWordError(
                f"{' '.join(wrong)}: {what}", words=wrong, right=(right,), why=None
            )
    if path in ("vm release", "vm show") and not any(word.startswith("-") for word in extra):
        fix = " && ".join(command(*before, vm, *after) for vm in wrong)
        raise UsageError(f"{' '.join(wrong)}: several VMs", why=_ONE_VM, fix=fix)


def check_missing(root: Any, path: str, words: Sequence[str]) -> None:
    """Raise WrongWordError for the state that `vm wait` takes as an option."""
    if path == "vm wait" and len(words) > 3 and is_parsed(root, [*words[:3], "--for", *words[3:]]):
        raise WrongWordError(
            f"{words[3]}: the state is the value of --for",
            words=(words[3],),
            right=("--for", words[3]),
            why=None,
        )
