# SPDX-License-Identifier: Apache-2.0
"""One start of a small VMM on this machine's own KVM, with and without the gate.

Run as a program this is the launcher: it notes the time and becomes the VMM, as `pmuctl run` does.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pmuctl.launch import launcher
from pmuctl.launch.spec import LaunchSpec

ROOT = Path(__file__).resolve().parents[2]
VMM = ROOT / "tests/launch/vmm.py"
SUPERVISOR = ROOT / "tests/launch/supervisor.py"
BEGAN = "began"
"""The file with the time at which the VMM was executed (seconds, CLOCK_MONOTONIC)."""


def can_be_native() -> str | None:
    """Why not; None where it can be."""
    if platform.machine() != "x86_64":
        return "the small VMM is one for x86-64"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return "/dev/kvm may not be used here"
    return None


def native_seconds(*, gated: bool) -> float:
    """From the exec of the VMM to its first KVM_RUN, its event filter set where it is `gated`."""
    with tempfile.TemporaryDirectory() as scratch:
        ran = subprocess.run(
            [sys.executable, "-P", __file__, "gated" if gated else "plain", scratch],
            capture_output=True,
            text=True,
            check=True,
        )
        began = float((Path(scratch) / BEGAN).read_text())
    said = [json.loads(line) for line in ran.stdout.splitlines()]
    return min(float(its["at"]) for its in said if "running" in its) - began


def main(kind: str, scratch: str) -> None:
    """Become the VMM."""
    execve = os.execve
    words = [sys.executable, str(VMM), "--vcpus", "2", "--run"]

    def noting(path: str, argv: list[str], environ: dict[bytes, bytes]) -> None:
        if argv == words:
            (Path(scratch) / BEGAN).write_text(str(time.monotonic()))
        execve(path, argv, environ)

    os.execve = noting  # type: ignore[assignment]
    if kind == "plain":
        launcher.execute(sys.executable, words, os.environb)
    orders = LaunchSpec(name="bench", socket=Path(scratch) / "log", command=tuple(words))
    launcher.launch(orders, sys.executable, words, os.environb, supervisor=SUPERVISOR)


if __name__ == "__main__":
    main(*sys.argv[1:])
