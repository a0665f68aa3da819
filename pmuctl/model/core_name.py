# SPDX-License-Identifier: Apache-2.0
"""Names that users have for a core model: in full, short forms of it, its MIDR, and globs."""

import fnmatch
import re
from collections.abc import Iterator

from pmuctl.model.pmu import CoreModel

FAMILIES = ("cortex", "neoverse", "brahma", "azure")
"""First words of names that nobody says: a76, n1, b53, cobalt."""

_MIDR = re.compile(r"0x([0-9a-f]{1,2}):0x([0-9a-f]{1,3})")
_GLOB = frozenset("*?[")
_FILLERS = str.maketrans("", "", "-_ ")


def is_named(core: CoreModel, text: str) -> bool:
    """Return whether a text is the MIDR ("0x48:0xd42") or a full name of a core model.

    Case is ignored, and so are `-`, `_` and spaces: PMU names have cortex_a76.
    """
    if match := _MIDR.fullmatch(text.lower()):
        return (core.implementer, core.part) == (int(match[1], 16), int(match[2], 16))
    return _fold(text) in map(_fold, _full_names(core))


def is_short_name(core: CoreModel, text: str) -> bool:
    """Return whether a text is a short form of a core model's name, as `is_named` compares."""
    return _fold(text) in map(_fold, short_names(core))


def is_matched(core: CoreModel, glob: str) -> bool:
    """Return whether a glob matches a name, a short form or the MIDR of a core model."""
    glob = glob.lower()
    if not _GLOB & set(glob):
        return False
    names = (*_full_names(core), *short_names(core), core.midr)
    return any(fnmatch.fnmatchcase(name.lower(), glob) for name in names)


def short_names(core: CoreModel) -> list[str]:
    """Return the short forms of a core model's names, in lower case, the longest first.

    They are the name without its family (Cortex-A76 → a76), and its first words
    (Firestorm-M1-Pro → firestorm-m1, firestorm).
    """
    shorts: dict[str, None] = {}
    for name in _full_names(core):
        words = name.lower().split("-")
        if len(words) > 1 and words[0] in FAMILIES:
            shorts["-".join(words[1:])] = None
            words = words[1:]
        firsts = ("-".join(words[:count]) for count in range(len(words) - 1, 0, -1))
        shorts |= dict.fromkeys(first for first in firsts if len(first) > 1)
    return list(shorts)


def _full_names(core: CoreModel) -> Iterator[str]:
    """Yield the names of a core model; one such as Typhoon/Capri is that of two chips."""
    for name in (*([core.name] if core.name else ()), *core.others):
        yield name
        if "/" in name:
            yield from name.split("/")


def _fold(name: str) -> str:
    """Return a name without what users write in different ways."""
    return name.lower().translate(_FILLERS)
