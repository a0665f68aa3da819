# SPDX-License-Identifier: Apache-2.0
"""Affinities as taskset, crosvm and kvmtool users write them, in the words of `affinity set`."""

import re
from collections.abc import Sequence

from pmuctl.errors import UsageError, command
from pmuctl.model.cpuset import CpuSet

_MASK = re.compile(r"0[xX]([0-9a-fA-F]{1,64})")
_CPUS = re.compile(r"\^?[0-9]{1,5}(?:[-,^][0-9,^-]*)?")
_PID = re.compile(r"[1-9][0-9]{0,9}")
_TASKSET = re.compile(r"-[acp]+|--(?:pid|cpu-list|all-tasks)")
_PAIR = re.compile(r"([0-9]{1,5})([:=@])([0-9]{1,5}(?:[-,][0-9]{1,5})*)")
_BETWEEN = re.compile(r",(?=[0-9]+[:=@])|:(?=[0-9]+=)")


def correct_taskset(words: Sequence[str]) -> list[str] | None:
    """Return VM and CPUSET for the options and operands of `taskset -pc CPUS PID`.

    Return None if it is not clear what is meant.
    """
    options = [word for word in words if _TASKSET.fullmatch(word)]
    operands = [word for word in words if word not in options]
    if not options or len(operands) != 2:
        return None
    cpus, vm = operands if _is_list(operands[0]) else operands[::-1]
    if _PID.fullmatch(cpus) and _is_list(vm) and not _PID.fullmatch(vm):
        cpus, vm = vm, cpus
    if not _is_list(cpus):
        return None
    return [f"pid/{vm}" if _PID.fullmatch(vm) else vm, _expand_mask(cpus)]


def correct_order(first: str, second: str) -> list[str] | None:
    """Return VM and CPUSET for a list of CPUs and what is none; None if it is not that order."""
    return [second, _expand_mask(first)] if _is_list(first) and not _is_list(second) else None


def _expand_mask(cpus: str) -> str:
    if match := _MASK.fullmatch(cpus):
        mask = int(match[1], 16)
        return str(CpuSet.of(cpu for cpu in range(mask.bit_length()) if mask >> cpu & 1))
    return cpus


def _is_list(word: str) -> bool:
    return bool(_CPUS.fullmatch(word) or _MASK.fullmatch(word))


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
