# SPDX-License-Identifier: Apache-2.0
"""The lab's cache: things made once, whole or not at all, also when two runs start at once."""

import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


class Cache:
    """A directory of made things; what is being made there has a name with `tmp-`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock: int | None = None
        self._has_waited = False

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> "Cache":
        """The cache of this user."""
        if own := environ.get("PMUCTL_LAB_CACHE"):
            return cls(Path(own).absolute())
        base = environ.get("XDG_CACHE_HOME") or os.path.join(environ.get("HOME", "/"), ".cache")
        return cls(Path(base).absolute() / "pmuctl-lab")

    def make(self, name: str, build: Callable[[Path], None]) -> Path:
        """The thing of this name; if it is not there, `build` makes it, a file or a directory."""
        path = self.root / name
        if not path.exists():
            with self.locked():
                if not path.exists():
                    self._make(path, build)
        os.utime(path)
        return path

    def keep_newest(self, pattern: str, count: int) -> None:
        """Of the things that match, remove all but the last used."""
        found = sorted(self.root.glob(pattern), key=lambda path: path.stat().st_mtime)
        for path in found[:-count]:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone in the cache, for as long as something is made; may be nested."""
        if self._lock is not None:
            yield
            return
        self.root.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not self._has_waited:
                    say("waiting for another run that builds")
                self._has_waited = True
                fcntl.flock(self._lock, fcntl.LOCK_EX)
            for left in self.root.glob("tmp-*"):
                shutil.rmtree(left, ignore_errors=True)
            yield
        finally:
            os.close(self._lock)
            self._lock = None

    def _make(self, path: Path, build: Callable[[Path], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=self.root) as scratch:
            part = Path(scratch) / path.name
            build(part)
            part.rename(path)


def say(text: str) -> None:
    """One line of progress, for work that takes longer than one expects."""
    print(f"lab: {text}", file=sys.stderr, flush=True)
