# SPDX-License-Identifier: Apache-2.0
"""Debian packages of any suite and architecture, without touching this machine's packages.

A private apt, as if for an empty machine, on the mirror this machine uses anyway.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.lab.cache import Cache, say
from tests.lab.errors import LabError

# Debian 13 has it under both names.
KEYRINGS = (
    Path("/usr/share/keyrings/debian-archive-keyring.gpg"),
    Path("/usr/share/keyrings/debian-archive-keyring.pgp"),
)


class Suite:
    """One suite of the archive, for one architecture; its lists are fetched at first use."""

    def __init__(self, cache: Cache, mirror: str, name: str, architecture: str) -> None:
        self.name = name
        self.architecture = architecture
        self._cache = cache
        self._mirror = mirror
        self._home = cache.root / "apt" / f"{name}-{architecture}"

    def names(self, regex: str) -> list[str]:
        """The packages whose name the regular expression matches as a whole."""
        found = self._apt("apt-cache", "pkgnames").split()
        return sorted(name for name in found if re.fullmatch(regex, name))

    def download(self, packages: Sequence[str], into: Path) -> list[Path]:
        """These packages alone, as files in `into`."""
        into.mkdir(parents=True, exist_ok=True)
        self._fetch("download", *packages, cwd=into)
        return sorted(into.glob("*.deb"))

    def download_all(self, packages: Sequence[str], into: Path) -> list[Path]:
        """These packages and all they depend on, as files in `into`."""
        (into / "partial").mkdir(parents=True, exist_ok=True)
        self._fetch(
            "install",
            "--yes",
            "--no-install-recommends",
            "--download-only",
            f"-oDir::Cache::archives={into}",
            *packages,
        )
        return sorted(into.glob("*.deb"))

    def _fetch(self, *args: str, cwd: Path | None = None) -> None:
        try:
            self._apt("apt-get", *args, cwd=cwd)
        except LabError:
            # the mirror may have moved on since the lists were fetched
            (self._home / "updated").unlink(missing_ok=True)
            self._apt("apt-get", *args, cwd=cwd)

    def _apt(self, *command: str, cwd: Path | None = None) -> str:
        with self._cache.locked():
            self._update()
            return self._run(*command, cwd=cwd)

    def _update(self) -> None:
        if (self._home / "updated").exists():
            return
        say(f"package lists of {self.name} ({self.architecture})")
        for folder in ("lists/partial", "cache"):
            (self._home / folder).mkdir(parents=True, exist_ok=True)
        (self._home / "debian.sources").write_text(
            f"Types: deb\nURIs: {self._mirror}\nSuites: {self.name}\nComponents: main\n"
            f"Signed-By: {find_keyring()}\n"
        )
        self._run("apt-get", "update", "--error-on=any")
        (self._home / "updated").touch()

    def _run(self, tool: str, *args: str, cwd: Path | None = None) -> str:
        options = {
            "APT::Architecture": self.architecture,
            "APT::Architectures": self.architecture,
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Debug::NoLocking": "1",
            "Dir::Cache": self._home / "cache",
            "Dir::Etc::SourceList": self._home / "debian.sources",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State::Lists": self._home / "lists",
            "Dir::State::status": "/dev/null",
        }
        return run(tool, *(f"-o{key}={value}" for key, value in options.items()), *args, cwd=cwd)


def find_mirror(environ: Mapping[str, str]) -> str:
    """The Debian mirror this machine's own apt uses."""
    if own := environ.get("PMUCTL_LAB_MIRROR"):
        return own
    targets = run(
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
        "Origin: Debian",
        "Label: Debian",
    )
    if not targets:
        raise LabError(
            "no Debian mirror in this machine's package lists; run apt-get update as root, "
            "or set PMUCTL_LAB_MIRROR"
        )
    return targets.split()[0]


def find_keyring() -> Path:
    """The keys that Debian's archive is signed with."""
    for path in KEYRINGS:
        if path.exists():
            return path
    raise LabError("no keys of Debian's archive here; install debian-archive-keyring")


def unpack(package: Path, into: Path) -> None:
    """Put a package's files under a directory."""
    run("dpkg-deb", "--extract", str(package), str(into))


def run(*command: str, cwd: Path | None = None, env: Mapping[str, str] | None = None) -> str:
    """The output of a command that must succeed."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"there is no {command[0]} here; run tests/setup") from error
    if done.returncode:
        raise LabError(f"{' '.join(command)}: status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout
