# SPDX-License-Identifier: Apache-2.0
"""The lab's initial file system: layers from the cache, pmuctl as it is in this tree, extras."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.lab.build import SITE, Builder, digest, pack, pip_install

ROOT = Path(__file__).resolve().parents[2]
LAB = Path(__file__).resolve().parent

# What a file or directory in the lab is made from: a path here, or the very bytes.
Source = Path | bytes


def initrd(
    builder: Builder, files: Mapping[str, Source], more_layers: Sequence[Path] = ()
) -> bytes:
    """The whole image; `files` are added by their absolute path in the lab."""
    layers = [
        builder.userland(),
        builder.packages(ROOT / "pyproject.toml"),
        project_layer(builder),
        lab_layer(builder),
        *more_layers,
    ]
    parts = [layer.read_bytes() for layer in layers]
    if files:
        parts.append(overlay(files))
    return b"".join(parts)


def project_layer(builder: Builder) -> Path:
    """pmuctl, installed as from this tree."""
    sources = [ROOT / "pyproject.toml", ROOT / "README.md", ROOT / "LICENSE"]
    sources += [*tree(ROOT / "pmuctl"), *tree(ROOT / "completions"), *tree(ROOT / "man")]

    def fill(root: Path) -> None:
        site = root / SITE
        pip_install(site, "--no-deps", "--no-build-isolation", str(ROOT))
        for name in ("bin", "share", "etc"):
            if (site / name).exists():
                target = root / ("usr" if name != "etc" else "") / name
                shutil.move(site / name, target)
        for script in (root / "usr/bin").glob("*"):
            # pip names the Python it runs under
            _, _, body = script.read_text().partition("\n")
            script.write_text(f"#!/usr/bin/python3\n{body}")

    return _layer(builder, "project", sources, fill)


def lab_layer(builder: Builder) -> Path:
    """The inner side of the lab, and the lab's own modules for what is run inside."""

    def fill(root: Path) -> None:
        shutil.copytree(LAB / "guest/root", root, dirs_exist_ok=True)
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(LAB, root / "lab/tests/lab", ignore=ignore)

    return _layer(builder, "lab", tree(LAB), fill)


def overlay(files: Mapping[str, Source]) -> bytes:
    """An archive of these files and directories."""
    with tempfile.TemporaryDirectory(prefix="pmuctl-lab-") as scratch:
        root = Path(scratch)
        for name, source in files.items():
            target = root / name.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                target.write_bytes(source)
                target.chmod(0o755 if source.startswith((b"#!", b"\x7fELF")) else 0o644)
            elif source.is_dir():
                shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(source, target)
        return pack(root)


def tree(folder: Path) -> Iterator[Path]:
    """The files below a directory that are part of the project, in a fixed order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path


def _layer(
    builder: Builder, name: str, sources: Iterable[Path], fill: Callable[[Path], None]
) -> Path:
    """A layer made again whenever one of its sources changes."""
    parts: list[str | bytes] = []
    for path in sources:
        if path.exists():
            mode = os.stat(path).st_mode & 0o777
            parts += [f"{path.relative_to(ROOT)} {mode:o}", path.read_bytes()]
    made = builder.layer(f"layers/{name}-{digest(*parts)}.cpio", fill)
    builder.cache.keep_newest(f"layers/{name}-*", 4)
    return made
