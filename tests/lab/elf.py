# SPDX-License-Identifier: Apache-2.0
"""Which shared libraries an arm64 program needs (System V gABI, chapter 5), and where they are."""

import struct
from collections.abc import Iterable
from pathlib import Path

PT_LOAD = 1
PT_DYNAMIC = 2
DT_NULL = 0
DT_NEEDED = 1
DT_STRTAB = 5

_MAGIC = b"\x7fELF\x02\x01"  # 64 bits, little-endian


def needed(path: Path) -> list[str]:
    """The libraries a program or library names itself, by soname; none if it is no such file."""
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        return []
    table, size, count = struct.unpack_from("<Q14xHH", data, 32)
    segments = [struct.unpack_from("<IIQQQQ", data, table + size * n) for n in range(count)]

    def offset(address: int) -> int:
        for kind, _, start, virtual, _, length in segments:
            if kind == PT_LOAD and virtual <= address < virtual + length:
                return int(start + address - virtual)
        raise ValueError(f"{path}: no segment has {address:#x}")

    entries: list[tuple[int, int]] = []
    for kind, _, start, _, _, length in segments:
        if kind == PT_DYNAMIC:
            entries += struct.iter_unpack("<QQ", data[start : start + length])
    entries = entries[: next((n for n, (tag, _) in enumerate(entries) if tag == DT_NULL), None)]
    strings = next((offset(value) for tag, value in entries if tag == DT_STRTAB), 0)
    return [_string(data, strings + value) for tag, value in entries if tag == DT_NEEDED]


def closure(program: Path, root: Path) -> dict[str, Path]:
    """All libraries that a program needs, by soname, out of what is below `root`.

    Raises FileNotFoundError for one that is not there.
    """
    there = _libraries(root.rglob("*.so*"))
    found: dict[str, Path] = {}
    todo = needed(program)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        if name not in there:
            raise FileNotFoundError(f"{name}, which {program.name} needs, is not below {root}")
        found[name] = there[name]
        todo += needed(there[name])
    return found


def _libraries(paths: Iterable[Path]) -> dict[str, Path]:
    return {path.name: path for path in sorted(paths, reverse=True) if path.is_file()}


def _string(data: bytes, start: int) -> str:
    return data[start : data.index(b"\0", start)].decode()
