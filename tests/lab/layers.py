# SPDX-License-Identifier: Apache-2.0
"""Layers of the lab that only some tests want: QEMU of three Debian releases, a Linux guest.

`boot(…, layers=("qemu-7.2", "guest-linux"))` puts them in. A QEMU comes with its libraries alone:
no firmware, no modules, so use it with `-accel kvm`, `-nic none` and `-display none`.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.lab.archive import Suite, find_keyring, find_mirror, unpack
from tests.lab.build import ARCHITECTURE, USERLAND, Builder, digest, pack
from tests.lab.cache import say
from tests.lab.elf import closure
from tests.lab.errors import LabError
from tests.lab.workloads.linux import fill_initrd

PROGRAM = "qemu-system-aarch64"
LIBRARIES = "aarch64-linux-gnu"
GUEST_LINUX = "/lab/guest-linux"

# What is made of packages is cached under this number too: raise it when the making changes.
RECIPE = 1


@dataclass(frozen=True, slots=True)
class Qemu:
    """One QEMU: its version as the lab calls it, and the suites it and its libraries are from."""

    version: str
    suites: tuple[str, ...]

    @property
    def name(self) -> str:
        """The layer's, and the command's in the lab."""
        return f"qemu-{self.version}"


QEMUS = (
    Qemu("7.2", (USERLAND,)),
    Qemu("10.0", ("trixie",)),
    Qemu("11", ("trixie-backports", "trixie")),
)


def all_layers(kernel: str) -> tuple[str, ...]:
    """The layers that any test of a kernel asks for."""
    qemus = QEMUS if kernel == "newest" else QEMUS[:1]
    return (*(qemu.name for qemu in qemus), "guest-linux")


class Suites(Suite):
    """Several suites as one; of a package that several have, the first one's is taken."""

    def __init__(self, builder: Builder, names: tuple[str, ...]) -> None:
        self._mirrors = find_mirror(builder.environ)
        super().__init__(builder.cache, self._mirrors, "+".join(names), ARCHITECTURE)
        self._names = names

    def _update(self) -> None:
        if (self._home / "updated").exists():
            return
        say(f"package lists of {', '.join(self._names)} ({self.architecture})")
        for folder in ("lists/partial", "cache"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        (self._home / "debian.sources").write_text(
            f"Types: deb\nURIs: {self._mirrors}\nSuites: {' '.join(self._names)}\n"
            f"Components: main\nSigned-By: {find_keyring()}\n"
        )
        self._run("apt-get", "update", "--error-on=any")
        (self._home / "updated").touch()

    def _run(self, tool: str, *args: str, cwd: Path | None = None) -> str:
        return super()._run(tool, f"-oAPT::Default-Release={self._names[0]}", *args, cwd=cwd)


def qemu_layer(builder: Builder, qemu: Qemu) -> Path:
    """The layer with a QEMU, its binary as packaged, started as /usr/bin/NAME.

    That of the userland's own release is where its package has it; the others are below
    /opt/NAME with their libraries, and replace the lab's C library by the one they need.
    """

    def fill(root: Path) -> None:
        say(f"{qemu.name} ({' and '.join(qemu.suites)})")
        debs, scratch = root.with_suffix(".debs"), root.with_suffix(".all")
        libc = root.with_suffix(".libc")
        for deb in Suites(builder, qemu.suites).download_all(["qemu-system-arm"], debs):
            unpack(deb, scratch)
            if deb.name.startswith("libc6_"):
                unpack(deb, libc)
        program = scratch / "usr/bin" / PROGRAM
        libraries = closure(program, scratch)
        own = {path.name: path for path in libc.glob(f"**/{LIBRARIES}/*.so.*")}
        libraries = {name: path for name, path in libraries.items() if name not in own}
        if qemu.suites == (USERLAND,):
            _fill_in_place(root, qemu, [program, *libraries.values()], scratch)
        else:
            _fill_apart(root, qemu, program, libraries)
            _copy(own, root / "lib" / LIBRARIES)

    parts = (str(RECIPE), qemu.version, *qemu.suites)
    return builder.layer(f"layers/{qemu.name}-{digest(*parts)}.cpio", fill)


def _fill_in_place(root: Path, qemu: Qemu, files: list[Path], scratch: Path) -> None:
    for file in files:
        target = root / file.relative_to(scratch)
        if file.is_symlink():
            # ldconfig wants them to be links
            file, name = file.resolve(), target
            target = root / file.relative_to(scratch.resolve())
            name.parent.mkdir(parents=True, exist_ok=True)
            name.symlink_to(os.path.relpath(target, name.parent))
        _copy({target.name: file}, target.parent)
    (root / "usr/bin" / qemu.name).symlink_to(PROGRAM)


def _fill_apart(root: Path, qemu: Qemu, program: Path, libraries: Mapping[str, Path]) -> None:
    home = f"/opt/{qemu.name}"
    own = root / home.lstrip("/")
    _copy({PROGRAM: program}, own / "bin")
    _copy(libraries, own / "lib")
    command = root / "usr/bin" / qemu.name
    command.parent.mkdir(parents=True)
    command.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={home}/lib exec {home}/bin/{PROGRAM} "$@"\n')
    command.chmod(0o755)


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, file in files.items():
        shutil.copy2(file, folder / name)


def guest_linux_layer(builder: Builder, kernel: str) -> Path:
    """The layer with a Linux guest: this kernel and an initial file system that reports."""
    image = builder.kernel(kernel)

    def fill(root: Path) -> None:
        inner = root.with_suffix(".inner")
        inner.mkdir()
        debs = inner.with_suffix(".debs")
        fill_initrd(inner, Suites(builder, (USERLAND,)).download(["busybox-static"], debs)[0])
        target = root / GUEST_LINUX.lstrip("/")
        target.mkdir(parents=True)
        (target / "initrd").write_bytes(pack(inner))
        shutil.copyfile(image, target / "Image")

    source = Path(__file__).parent / "workloads"
    sources = (path.read_bytes() for path in sorted(source.glob("*.py")))
    made = builder.layer(f"layers/guest-linux-{image.name}-{digest(*sources)}.cpio", fill)
    builder.cache.keep_newest(f"layers/guest-linux-{image.name}-*", 2)
    return made


def find(builder: Builder, name: str, kernel: str) -> Path:
    """The layer of this name, for a lab with this kernel; raises LabError if there is none."""
    makers: dict[str, Callable[[], Path]] = {
        "guest-linux": partial(guest_linux_layer, builder, kernel)
    }
    for qemu in QEMUS:
        makers[qemu.name] = partial(qemu_layer, builder, qemu)
    if name not in makers:
        raise LabError(f"{name}: no such layer; there are {', '.join(makers)}")
    return makers[name]()
