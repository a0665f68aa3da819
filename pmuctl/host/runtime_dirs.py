# SPDX-License-Identifier: Apache-2.0
"""The directories for what lasts no longer than a boot: root's, and each user's."""

from collections.abc import Mapping
from pathlib import Path

PATH_RUN = Path("/run/pmuctl")
PATH_USERS = Path("/run/user")
PROBE_CACHE = "kvm-probe.json"
PATH_CAPTURED = f"run/pmuctl/{PROBE_CACHE}"
"""In a captured tree, which has no boot id: what probes had found where it was made."""
PATH_TOLD = "run/pmuctl/told"
"""In a captured tree: what each control socket told when it was made, a file each."""
LEFT_OUT = "left-out"
"""There: how many control sockets were not asked."""


def cache_dirs(
    environ: Mapping[str, str], uid: int, *, run: Path = PATH_RUN
) -> tuple[list[Path], Path | None]:
    """The directories to read from, and the one to write to: root's own, or the user's.

    Users read root's cache too: it knows what those who may not open /dev/kvm cannot find out.
    """
    if uid == 0:
        return [run], run
    runtime = environ.get("XDG_RUNTIME_DIR")
    own = Path(runtime) / "pmuctl" if runtime and Path(runtime).is_absolute() else None
    return ([run, own], own) if own else ([run], None)
