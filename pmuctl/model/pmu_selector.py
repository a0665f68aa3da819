# SPDX-License-Identifier: Apache-2.0
"""Selectors of a CPU PMU: name, glob, core model or CPUs, never a type number."""

import fnmatch
import re
from collections.abc import Sequence
from difflib import get_close_matches

from pmuctl.errors import NotFoundError, UsageError, WrongWordError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.pmu import OtherPmu, Pmu


def match_pmus(text: str, pmus: Sequence[Pmu]) -> list[Pmu]:
    """Return the PMUs that a sysfs name, a glob, `core/MODEL` or `cpus/LIST` selects.

    MODEL is a name, a short form, the MIDR or a glob of a core model. The first of these ways that
    selects a PMU counts: on a host that has both, Denver is not Denver-2. `cpus/LIST` selects the
    PMUs that cover at least these CPUs. Raise UsageError if LIST is not a CPU list, or if a name,
    model or list is missing.
    """
    kind, slash, rest = text.partition("/")
    if not text or (slash and kind in ("core", "cpus") and not rest):
        what = {"core": "a core model", "cpus": "a CPU list"}.get(kind, "the name of a PMU")
        raise UsageError(f"{text or repr(text)}: {what} is missing", fix="pmuctl pmu list")
    if slash and kind == "core":
        return _match_cores(rest, pmus)
    if slash and kind == "cpus":
        try:
            cpus = CpuSet.parse(rest)
        except ValueError as error:
            raise UsageError(f"{text}: {error}", fix="write cpus/4-7") from None
        return [p for p in pmus if cpus and p.cpus is not None and cpus <= p.cpus]
    return [p for p in pmus if p.name == text] or [
        p for p in pmus if fnmatch.fnmatchcase(p.name, text)
    ]


def _match_cores(text: str, pmus: Sequence[Pmu]) -> list[Pmu]:
    # imported here, because most commands name no core
    from pmuctl.model.core_name import is_matched, is_named, is_short_name

    for matches in (is_named, is_short_name, is_matched):
        if found := [pmu for pmu in pmus if any(matches(core, text) for core in pmu.cores)]:
            return found
    return []


def select_pmu(text: str, pmus: Sequence[Pmu], others: Sequence[OtherPmu] = ()) -> Pmu:
    """Return the one PMU that the text selects.

    Raise NotFoundError if it selects none (the error says so if the text names an event source
    that is no CPU PMU), UsageError if it selects several.
    """
    found = match_pmus(text, pmus)
    if len(found) == 1:
        return found[0]
    have = ", ".join(pmu.name for pmu in pmus) or ("none" if others else "not known")
    if found:
        raise UsageError(
            f"{text}: stands for {len(found)} PMUs",
            why=", ".join(pmu.name for pmu in found),
            fix="name one of them",
        )
    if any(other.name == text for other in others):
        raise NotFoundError(
            f"{text}: not a CPU PMU",
            why="it is an event source, but no arm_pmu device: no VM can use it (ENXIO)",
            fix=f"choose one of: {have}",
            errno="ENXIO",
        )
    # for a core model by itself, what is known of cores tells more than the names of PMUs
    right = None if text.startswith("core/") else suggest_selector(text, pmus)
    if right is not None:
        name = match_pmus(right, pmus)[0].name
        selects = f"its name is {name}" if right == name else f"{right} selects {name}"
        raise WrongWordError(
            f"{text}: not the name of a PMU",
            words=(text,),
            right=(right,),
            why="type numbers differ from boot to boot" if _TYPE.fullmatch(text) else selects,
        )
    if text.startswith("cpus/"):
        covered = ", ".join(f"{pmu.name} covers {pmu.cpus}" for pmu in pmus)
        raise NotFoundError(
            f"{text}: no PMU covers all of these CPUs", why=covered or None, fix="pmuctl pmu cpus"
        )
    near = get_close_matches(text, [pmu.name for pmu in pmus], n=3, cutoff=0.5)
    if text.startswith("core/"):
        cores = dict.fromkeys(core for pmu in pmus for core in pmu.cores)
        names = ", ".join(f"{core} ({core.midr})" if core.name else str(core) for core in cores)
        why = f"the core models of this host: {names or 'not known'}"
        if unseen := _offline_without_core(pmus):
            why += f"; not known of {unseen}, whose CPUs are offline"
        raise NotFoundError(f"{text}: no such PMU", why=why, fix="pmuctl pmu list")
    why = f"similar names: {', '.join(near)}" if near else f"the CPU PMUs of this host: {have}"
    raise NotFoundError(f"{text}: no such PMU", why=why, fix="pmuctl pmu list", errno="ENXIO")


_TYPE = re.compile(r"(?:type[=/])?([0-9]{1,9})", re.IGNORECASE)
_KIND = re.compile(r"(cores?|cpus?|pmu|name)[=/:](.+)", re.IGNORECASE)
_CPU_LIST = re.compile(r"[0-9]{1,5}(?:[-,][0-9]{1,5})*")


def suggest_selector(text: str, pmus: Sequence[Pmu]) -> str | None:
    """Return the selector that a wrong one clearly stands for; None if that is not clear.

    It may be a perf type number, CPUs or a core model by themselves, a part of a name, or a
    selector in other letters.
    """
    match = _TYPE.fullmatch(text)
    by_type = [pmu.name for pmu in pmus if match and pmu.type == int(match[1])]
    kind, bare = "", text
    if match := _KIND.fullmatch(text):
        kind, bare = match[1].lower(), match[2]
    folded = bare.lower().replace("-", "_")
    candidates = by_type
    if kind not in ("cpu", "cpus"):
        candidates += [pmu.name for pmu in pmus if pmu.name.lower() == folded]
        candidates.append(f"core/{bare.lower()}")
    if kind not in ("core", "cores") and _CPU_LIST.fullmatch(bare):
        candidates.append(f"cpus/{bare}")
    named = [pmu.name for pmu in pmus if f"_{folded}_" in f"_{pmu.name.lower()}_"]
    candidates += named if len(named) == 1 else []
    return next((each for each in candidates if is_selector(each, pmus)), None)


def is_selector(text: str, pmus: Sequence[Pmu]) -> bool:
    """Return whether the text selects one PMU."""
    try:
        return len(match_pmus(text, pmus)) == 1
    except UsageError:
        return False


def _offline_without_core(pmus: Sequence[Pmu]) -> str:
    """Return the PMUs of which no CPU is online, so that no core model can be read."""
    return ", ".join(pmu.name for pmu in pmus if pmu.online is not None and not pmu.online)
