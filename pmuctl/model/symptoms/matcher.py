# SPDX-License-Identifier: Apache-2.0
"""Which symptoms a message shows, the likeliest first."""

import re
from collections.abc import Iterator, Sequence
from enum import IntEnum
from functools import cache

from pmuctl.model.symptoms.host import SymptomHost
from pmuctl.model.symptoms.symptom import Symptom
from pmuctl.model.symptoms.table import SYMPTOMS
from pmuctl.model.symptoms.vmms import NamedVmm, find_vmms
from pmuctl.model.symptoms.words import error_names, split_messages, split_words, stem

_FILLERS = frozenset("a an and at for in is it of on or the to with".split())
_GENERAL = frozenset(
    stem(word)
    for word in (
        "kvm cpu vcpu guest host process device driver no one other fail error exit status code "
        "run start boot set load state while instance request operation valid support answer "
        "message whatever trace"
    ).split()
) | frozenset("NOT_SUPPORTED EINVAL ENODEV EPERM EIO ENOENT ENOTSUP EBUSY ENOSYS".split())
"""Words that say nothing of themselves: they may be of anything."""
_TELLING_ERROR = frozenset({"EBUSY"})
"""An error whose text is enough by itself: on arm64 KVM gives it for little else."""
_OTHER_MACHINE = re.compile(
    r"qemu-system-(?!aarch64|arm|aar\b)\w+|\b[re](?:ax|ip)\s*=|\bvmx\b|\bsvm\b"
    r"|\bpowerpc\b|\bppc64\w*|\briscv(?:32|64)?\b|\bs390x?\b|\bloongarch\w*",
    re.IGNORECASE,
)
"""Words of a VM that is not arm64's: its messages have other causes."""


class _Match(IntEnum):
    """How a message matches a symptom."""

    NONE = 0
    """it has not its words"""
    PLAIN = 1
    """it has its words, and names no error"""
    OTHER_ERROR = 2
    """it has its words, but names an error that the symptom never comes with"""
    SAME_ERROR = 3
    """it has its words, and names an error that the symptom comes with"""


def match_symptoms(text: str, host: SymptomHost | None = None) -> list[Symptom]:
    """Return the symptom that a text names by its id, or else those that it matches.

    The likeliest on this host is the first. Case does not matter. Return an empty list if the
    text has no word, or matches no symptom.
    """
    if named := [symptom for symptom in SYMPTOMS if symptom.id == text.strip().lower()]:
        return named
    if _OTHER_MACHINE.search(text):
        return []
    messages = split_messages(text)
    symptoms = list(_of_vmms(find_vmms(text)))
    ranked = [(_rank(messages, symptom), symptom) for symptom in symptoms]
    found = [(rank, symptom) for rank, symptom in ranked if rank is not None]
    generals = {symptom.general for _, symptom in found}
    if not found and len(messages) == 1:
        is_name = len(text.split()) == 1 and bool(error_names(messages[0]))
        is_part = _is_error if is_name or messages[0] == _TELLING_ERROR else _is_part
        found = [(symptom.rank, symptom) for symptom in symptoms if is_part(messages[0], symptom)]
        # no VMM may be named: the answer of any comes before that of one
        ids = {symptom.id for _, symptom in found}
        found.sort(key=lambda each: each[1].general in ids)
    traits = host.traits if host else frozenset()
    likelihoods = [
        (rank + sum(symptom.likely.get(trait, 0) for trait in traits), symptom)
        for rank, symptom in found
        if symptom.id not in generals
    ]
    # sorted() keeps the order of the table among equals
    return [symptom for _, symptom in sorted(likelihoods, key=lambda each: -each[0])]


def _of_vmms(vmms: Sequence[NamedVmm]) -> Iterator[Symptom]:
    """Yield the symptoms that a user of these VMMs can have; all if there are none."""
    for symptom in SYMPTOMS:
        if not vmms or symptom.vmm is None or symptom.vmm in vmms:
            yield symptom


def _rank(messages: Sequence[frozenset[str]], symptom: Symptom) -> int | None:
    """Return the rank of a symptom, less by 2 if it only may be shown; None if it is not."""
    for rank, entries in ((symptom.rank, symptom.words), (symptom.rank - 2, symptom.may)):
        best = max(
            (_match_entries(message, entries, symptom) for message in messages),
            default=_Match.NONE,
        )
        if best in (_Match.PLAIN, _Match.SAME_ERROR):
            return rank
    return None


def _match_entries(message: frozenset[str], entries: Sequence[str], symptom: Symptom) -> _Match:
    if not any(_has_words(message, entry) for entry in entries):
        return _Match.NONE
    if any(_has_words(message, entry) for entry in symptom.unless):
        return _Match.NONE
    errors = error_names(message)
    if symptom.errors is None or not errors:
        return _Match.PLAIN
    return _Match.SAME_ERROR if errors & set(symptom.errors) else _Match.OTHER_ERROR


def _has_words(message: frozenset[str], entry: str) -> bool:
    return all(not choice.isdisjoint(message) for choice in _parse_entry(entry))


@cache
def _parse_entry(entry: str) -> tuple[frozenset[str], ...]:
    """Return the choices of an entry such as "put regist fail|EINVAL", each as the words in it."""
    return tuple(
        frozenset(
            word if word.isupper() or "_" in word else stem(word) for word in choice.split("|")
        )
        for choice in entry.split()
    )


def _is_error(message: frozenset[str], symptom: Symptom) -> bool:
    """Return whether a message, the name of an error, is the only error of a symptom."""
    return symptom.errors is not None and message == set(symptom.errors) - {"EINVAL"}


def _is_part(message: frozenset[str], symptom: Symptom) -> bool:
    """Return whether a message is a part of what is seen of a symptom, and a telling one."""
    message -= _FILLERS
    return _is_telling(message) and message <= split_words(f"{symptom.by}: {symptom.seen}")


def _is_telling(message: frozenset[str]) -> bool:
    """Return whether words say enough by themselves: names, phrases, or several other words."""
    words = message - _GENERAL
    names = [word for word in words if word.isupper() or "_" in word or find_vmms(word)]
    return bool(names) or len(words) > 2
