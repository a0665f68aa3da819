# SPDX-License-Identifier: Apache-2.0
"""Lists of CPUs, for programs in the lab that are to start fast and for its own tables."""


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPUs of a list such as `0-1,4`, none for white space; raises ValueError."""
    cpus: list[int] = []
    for part in text.split(",") if text.strip() else ():
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)
