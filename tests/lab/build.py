# SPDX-License-Identifier: Apache-2.0
"""The parts of the lab that come from packages: kernels, userland, a Python to compile with."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.lab.archive import Suite, find_mirror, run, unpack
from tests.lab.cache import Cache, say
from tests.lab.errors import LabError, NoKernelError

ARCHITECTURE = "arm64"
USERLAND = "bookworm"
PYTHON = "3.11"
STDLIB = f"usr/lib/python{PYTHON}"
SITE = "usr/lib/python3/dist-packages"

# Where a series is to be had; the first suite that has it.
SUITES: Mapping[str, tuple[str, ...]] = {
    "6.1": ("bookworm",),
    "6.12": ("trixie", "bookworm-backports"),
}
SUITES_OF_OTHERS = ("trixie-backports",)

EMULATOR = "qemu-system-aarch64"
EMULATOR_MIN = (8, 1)
"""Before, a CPU of the host could go on with code that another one had just patched, for one was
translating it while the other wrote (QEMU commit deba78709ae8). Linux patches its scheduler when
the first VM or perf event is there: then kvm_sched_out() was skipped once in some hundred starts
of a VM, and the host warned in kvm_vcpu_load_debug() or lost itself."""
EMULATOR_SUITE = "bookworm-backports"
EMULATOR_PACKAGES = ("qemu-system-arm", "qemu-system-common", "qemu-system-data")

PACKAGES = (
    "busybox-static",
    "libc-bin",
    f"libpython{PYTHON}-stdlib",
    "libudev1",
    f"python{PYTHON}-minimal",
    "strace",
)
# Depended upon by those, but by nothing that runs in the lab.
UNWANTED = (
    "debconf dpkg gcc-12-base libdb5.3 libgssapi-krb5-2 libk5crypto3 libkrb5-3 libkrb5support0 "
    "libnsl2 libsqlite3-0 libtirpc-common libtirpc3 media-types perl-base readline-common tar"
).split()
TRIMMED = (
    "etc/python3.11/sitecustomize.py",
    "usr/bin/python3.11-config",
    "usr/lib/aarch64-linux-gnu/gconv",
    f"{STDLIB}/ensurepip",
    f"{STDLIB}/idlelib",
    f"{STDLIB}/lib2to3",
    f"{STDLIB}/pydoc_data",
    f"{STDLIB}/sitecustomize.py",
    f"{STDLIB}/test",
    f"{STDLIB}/tkinter",
    f"{STDLIB}/unittest",
    "usr/share",
)


class Builder:
    """Makes the parts at first use and keeps them in a cache."""

    def __init__(self, cache: Cache, environ: Mapping[str, str]) -> None:
        self.cache = cache
        self.environ = environ

    def emulator(self) -> str:
        """The QEMU that is the host: this machine's, or a newer one where that is too old.

        The newer one needs the libraries of this machine's, so of the same release of Debian.
        """
        if shutil.which(EMULATOR) is None:
            raise LabError(f"there is no {EMULATOR} here; run tests/setup")
        if qemu_version(run(EMULATOR, "--version")) >= EMULATOR_MIN:
            return EMULATOR
        return str(self.cache.make("emulator", self._build_emulator) / "usr/bin" / EMULATOR)

    def kernel(self, series: str) -> Path:
        """The kernel image of a series such as `6.12`, or of the `newest` there is."""
        if series == "newest":
            series = self.newest()
        if not re.fullmatch(r"\d+\.\d+", series):
            raise LabError(f"{series}: not a kernel series such as 6.12, nor `newest`")
        return self.cache.make(f"kernels/{series}", lambda out: self._build_kernel(series, out))

    def newest(self) -> str:
        """The highest series to be had, as found when it was first asked for."""
        path = self.cache.make("newest", self._find_newest)
        return path.read_text().strip()

    def userland(self) -> Path:
        """The layer of Debian packages."""
        name = f"layers/userland-{digest(USERLAND, *PACKAGES, *UNWANTED, *TRIMMED)}.cpio"
        return self.layer(name, self._fill_userland)

    def packages(self, pyproject: Path) -> Path:
        """The layer of what pmuctl imports, within the bounds of its project file."""
        bounds: list[str] = tomllib.loads(pyproject.read_text())["project"]["dependencies"]

        def fill(root: Path) -> None:
            say(f"Python packages: {', '.join(bounds)}")
            pip_install(
                root / SITE,
                "--only-binary=:all:",
                f"--python-version={PYTHON}",
                "--implementation=cp",
                "--platform=manylinux2014_aarch64",
                *bounds,
            )
            shutil.rmtree(root / SITE / "bin", ignore_errors=True)

        path = self.layer(f"layers/packages-{digest(*bounds)}.cpio", fill)
        self.cache.keep_newest("layers/packages-*", 3)
        return path

    def layer(self, name: str, fill: Callable[[Path], None]) -> Path:
        """An archive of what `fill` puts in a directory, its Python compiled."""
        python = self.python()

        def build(out: Path) -> None:
            root = out.with_suffix(".root")
            root.mkdir()
            fill(root)
            compile_tree(python, root)
            out.write_bytes(pack(root))

        return self.cache.make(name, build)

    def python(self) -> Path:
        """The lab's Python for this machine: only it writes byte code the lab's can use."""
        return self.cache.make(f"python{PYTHON}", self._build_python)

    def _suite(self, name: str, architecture: str = ARCHITECTURE) -> Suite:
        return Suite(self.cache, find_mirror(self.environ), name, architecture)

    def _find_newest(self, out: Path) -> None:
        found: set[tuple[int, ...]] = set()
        for name in SUITES_OF_OTHERS:
            for package in self._suite(name).names(kernel_regex(r"\d+\.\d+")):
                found.add(kernel_version(package)[:2])
        if not found:
            raise LabError(f"no kernel in {', '.join(SUITES_OF_OTHERS)}")
        out.write_text(".".join(map(str, max(found))) + "\n")

    def _build_kernel(self, series: str, out: Path) -> None:
        suites = SUITES.get(series, SUITES_OF_OTHERS)
        for name in suites:
            suite = self._suite(name)
            if package := newest_kernel(suite.names(kernel_regex(re.escape(series)))):
                break
        else:
            raise NoKernelError(f"no {series} kernel in {', '.join(suites)}")
        say(f"kernel {series}: {package} ({suite.name})")
        scratch = out.with_suffix(".root")
        for deb in suite.download([package], out.with_suffix(".debs")):
            unpack(deb, scratch)
        images = [path for path in scratch.rglob("vmlinuz*") if path.is_file()]
        if len(images) != 1:
            raise LabError(f"{package}: {len(images)} kernel images in it")
        images[0].rename(out)

    def _fill_userland(self, root: Path) -> None:
        say(f"userland: {', '.join(PACKAGES)} ({USERLAND})")
        debs = root.with_suffix(".debs")
        for deb in self._suite(USERLAND).download_all(PACKAGES, debs):
            if deb.name.partition("_")[0] not in UNWANTED:
                unpack(deb, root)
        for name in TRIMMED:
            if (root / name).is_dir():
                shutil.rmtree(root / name)
            else:
                (root / name).unlink(missing_ok=True)
        (root / "usr/bin/python3").symlink_to(f"python{PYTHON}")

    def _build_emulator(self, out: Path) -> None:
        native = run("dpkg", "--print-architecture").strip()
        say(f"emulator: {EMULATOR} ({EMULATOR_SUITE})")
        suite = self._suite(EMULATOR_SUITE, native)
        for deb in suite.download(EMULATOR_PACKAGES, out.with_suffix(".debs")):
            unpack(deb, out)
        found = run(str(out / "usr/bin" / EMULATOR), "--version")
        if qemu_version(found) < EMULATOR_MIN:
            raise LabError(f"{EMULATOR_SUITE} has no newer QEMU: {found}")

    def _build_python(self, out: Path) -> None:
        native = run("dpkg", "--print-architecture").strip()
        names = [f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal"]
        say(f"Python {PYTHON} to compile with ({native})")
        packages = [*names, f"libpython{PYTHON}-stdlib"]
        for deb in self._suite(USERLAND, native).download(packages, out.with_suffix(".debs")):
            unpack(deb, out)


def qemu_version(text: str) -> tuple[int, int]:
    """Major and minor number of what `qemu-system-… --version` says."""
    match = re.match(r"QEMU emulator version (\d+)\.(\d+)", text)
    if match is None:
        raise LabError(f"no QEMU says this of itself: {text}")
    return int(match[1]), int(match[2])


def kernel_regex(series: str) -> str:
    """Of the plain kernels of a series: not the debug, real-time or unsigned ones.

    From 6.19 on, linux-image-* is empty and the image is in linux-binary-*.
    """
    return rf"linux-(image|binary)-{series}\.[-0-9.+~a-z]*?-?cloud-{ARCHITECTURE}"


def kernel_version(package: str) -> tuple[int, ...]:
    """The numbers in the name of a kernel package."""
    return tuple(map(int, re.findall(r"\d+", package.removesuffix(ARCHITECTURE))))


def newest_kernel(packages: Sequence[str]) -> str | None:
    """The package that has the image of the highest version."""
    return max(packages, key=lambda name: (kernel_version(name), "-binary-" in name), default=None)


def digest(*parts: str | bytes) -> str:
    """A short name for just these parts."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part if isinstance(part, bytes) else part.encode())
        whole.update(b"\0")
    return whole.hexdigest()[:16]


def pip_install(target: Path, *args: str) -> None:
    """Install without byte code: pip would write that of the Python it runs under."""
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
    run(*pip, "install", "--no-compile", "--target", str(target), *args)


def compile_tree(python: Path, root: Path) -> None:
    """Compile all Python below a directory that will be `/`.

    Byte code is the same on every architecture, and under TCG it saves seconds a command; so does
    leaving out which columns it came from. A file with a syntax error is left as it is: whoever
    imports it is told.
    """
    env = {"PYTHONHOME": str(python / "usr"), "PATH": os.defpath, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(
        [
            str(python / f"usr/bin/python{PYTHON}"),
            *("-S", "-X", "no_debug_ranges"),
            *("-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"),
            *("-s", str(root), "-p", "/", str(root)),
        ],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise LabError(f"cannot compile: status {done.returncode}\n{done.stderr}")


def pack(root: Path) -> bytes:
    """A directory as an archive the kernel unpacks, everything root's."""
    names = sorted(str(path.relative_to(root)) for path in root.rglob("*"))
    done = subprocess.run(
        ["cpio", "--create", "--format=newc", "--owner=0:0", "--null", "--quiet"],
        cwd=root,
        input=b"".join(name.encode() + b"\0" for name in names),
        stdout=subprocess.PIPE,
        check=True,
    )
    return done.stdout
