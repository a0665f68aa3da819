# SPDX-License-Identifier: Apache-2.0
"""Affinities as taskset, crosvm and kvmtool users write them, in the words of `affinity set`."""

import re
from collections.abc import Sequence

from pmuctl.errors import UsageError, command
from pmuctl.model.cpuset import CpuSet

_CPUS = re.compile(r"\^?[0-9]{1,5}(?:[-,^][0-9,^-]*)?")
_PID = re.compile(r"[1-9][0-9]{0,9}")
_TASKSET = re.compile(r"-[acp]+|--(?:pid|cpu-list|all-tasks)")
_PAIR = re.compile(r"([0-9]{1,5})([:=@])([0-9]{1,5}(?:[-,][0-9]{1,5})*)")
_BETWEEN = re.compile(r",(?=[0-9]+[:=@])|:(?=[0-9]+=)")


def correct_taskset(words: Sequence[str]) -> list[str] | None:
    """Return VM and CPUSET for what taskset takes: `-p MASK PID` or `-pc LIST PID`.

    The VM may stand first, too, before the options. Return None if it is not clear what is meant.
    """
    options = [word for word in words if _TASKSET.fullmatch(word)]
    operands = [word for word in words if word not in options]
    if not options or len(operands) != 2:
        return None
    takes_list = any(word == "--cpu-list" or (word[1] != "-" and "c" in word) for word in options)
    expand = _expand_list if takes_list else _expand_mask
    orders = (operands, operands[::-1])
    for cpus, vm in orders if words[0] in options else orders[::-1]:
        is_process = _PID.fullmatch(vm) is not None
        if (found := expand(cpus)) is not None and (is_process or _expand_list(vm) is None):
            return [f"pid/{vm}" if is_process else vm, found]
    return None


def correct_order(first: str, second: str) -> list[str] | None:
    """Return VM and CPUSET for a list of CPUs and what is none; None if it is not that order."""
    cpus = _expand_list(first)
    return [second, cpus] if cpus is not None and _expand_list(second) is None else None


def _expand_list(word: str) -> str | None:
    """Return the CPU list that a word is, or is the mask of, with 0x; None if it is neither."""
    if word[:2] in ("0x", "0X"):
        return _expand_mask(word)
    return word if _CPUS.fullmatch(word) else None


def _expand_mask(word: str) -> str | None:
    """Return the CPU list of a mask, or that a word is if it is no mask; None if it is neither."""
    try:
        return str(CpuSet.parse_mask(word)) or None
    except ValueError:
        return word if _CPUS.fullmatch(word) else None


def pair_commands(vm: str, words: Sequence[str]) -> str | None:
    """Return the commands for CPUs of each vCPU, `0=2 1=3`; None if the words are no such list.

    A single `0:2` is not known from a span of CPUs.
    """
    parts = [part for word in words for part in _BETWEEN.split(word.rstrip(","))]
    pairs = [match for part in parts if (match := _PAIR.fullmatch(part))]
    if len(pairs) < len(parts) or (len(pairs) == 1 and pairs[0][2] == ":"):
        return None
    lines = [command("affinity", "set", vm, pair[3], "--vcpu", pair[1]) for pair in pairs]
    return " && ".join(lines) or None


def make_pairs_error(text: str, fix: str) -> UsageError:
    """Return the refusal of CPUs for each vCPU, with the commands that set these."""
    why = "this command takes CPUs for all vCPUs, or for those of --vcpu"
    return UsageError(f"{text}: not a list of CPUs", why=why, fix=fix)
