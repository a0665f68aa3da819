# SPDX-License-Identifier: Apache-2.0
"""Directories for files that last until the next boot: root's, and each user's."""

from collections.abc import Mapping
from pathlib import Path

PATH_RUN = Path("/run/pmuctl")
PATH_USERS = Path("/run/user")
PROBE_CACHE = "kvm-probe.json"
PATH_CAPTURED = f"run/pmuctl/{PROBE_CACHE}"
"""In a captured tree, which has no boot id: the probe results of the captured machine."""
PATH_REPLIES = "run/pmuctl/told"
"""In a captured tree: the reply of each control socket at that time, a file each."""
LEFT_OUT = "left-out"
"""In PATH_REPLIES: how many control sockets were not queried."""


def cache_dirs(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN
) -> tuple[list[Path], Path | None]:
    """Return the directories to read the cache from, and the one to write it to.

    Users also read root's cache, which holds what only those who may open /dev/kvm can find out.
    A user without an absolute XDG_RUNTIME_DIR has no directory to write to (None).
    """
    if uid == 0:
        return [run], run
    runtime = environ.get("XDG_RUNTIME_DIR")
    own = Path(runtime) / "pmuctl" if runtime and Path(runtime).is_absolute() else None
    return ([run, own], own) if own else ([run], None)
