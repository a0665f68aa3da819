# SPDX-License-Identifier: Apache-2.0
"""The true pyudev and libudev on every dump, in umockdev's testbed, against the plain walk."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.skips import skip_if

PROJECT = Path(__file__).parents[3]
NAMES = sorted(dump.stem for dump in (PROJECT / "tests/dumps").glob("*.txt"))

SCRIPT = """
import json, sys
from pathlib import Path
from pmuctl.host.pmus import scan_event_sources
from pmuctl.host.pmus import scan_other
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs

if "--no-pyudev" in sys.argv:
    sys.modules["pyudev"] = None


def told(value):
    return {name: getattr(value, name) for name in value.__fields__}


sysfs = Sysfs(Path(sys.argv[1]))
found = {
    "source": scan_event_sources(sysfs).source,
    "pmus": [told(pmu) for pmu in scan_pmus(sysfs)],
    "other": [told(other) for other in scan_other(sysfs)],
    "libudev": "libudev.so" in Path("/proc/self/maps").read_text(),
}
json.dump(found, sys.stdout, default=str)
"""

pytestmark = skip_if(
    shutil.which("umockdev-run") is None,
    "umockdev-run is missing: pyudev is not tested",
    runs="with the package umockdev",
)


def describe(root: Path) -> str:
    """A captured tree as umockdev's description: one block for each device directory.

    Devices are the directories with a `subsystem` link and, as captures leave out theirs, those
    of the CPUs; the directory above these is not a device, but umockdev knows nothing else.
    """
    cpu = root / "sys/devices/system/cpu"
    subsystems = {cpu: "system"} | {path: "cpu" for path in cpu.glob("cpu[0-9]*")}
    for link in root.glob("sys/devices/**/subsystem"):
        subsystems[link.parent] = os.path.basename(os.readlink(link))
    blocks = []
    # parents first
    for device in sorted(subsystems):
        path = str(device.relative_to(root / "sys"))
        lines = [f"P: /{path}", f"E: SUBSYSTEM={subsystems[device]}"]
        lines += [
            f"H: {file.relative_to(device)}={file.read_bytes().hex().upper()}"
            for file in attributes(device, set(subsystems))
        ]
        blocks.append("\n".join(lines) + "\n")
    return "\n".join(blocks)


def attributes(directory: Path, devices: set[Path]) -> Iterator[Path]:
    """The files of one device, without those of the devices below it."""
    for path in sorted(directory.iterdir()):
        if path.is_symlink() or path in devices:
            continue
        if path.is_dir():
            yield from attributes(path, devices)
        else:
            yield path


def scan(root: Path, *options: str, testbed: Path | None = None) -> Any:
    """What a fresh Python finds below `root`, in a testbed or not."""
    wrapper = [] if testbed is None else ["umockdev-run", "-d", str(testbed), "--"]
    python = [sys.executable, "-W", "error", "-c", SCRIPT, str(root), *options]
    done = subprocess.run(
        [*wrapper, *python], cwd=PROJECT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_pyudev_and_the_walk_find_the_same(dump: Callable[[str], Path], name: str) -> None:
    root = dump(name)
    testbed = root.with_suffix(".umockdev")
    testbed.write_text(describe(root))

    captured = scan(root)
    assert (captured.pop("source"), captured.pop("libudev")) == ("sysfs", False)
    assert captured["pmus"]
    assert captured["other"]

    live = scan(Path("/"), testbed=testbed)
    assert (live.pop("source"), live.pop("libudev")) == ("udev", True)
    assert live == captured

    without = scan(Path("/"), "--no-pyudev", testbed=testbed)
    assert (without.pop("source"), without.pop("libudev")) == ("sysfs", False)
    assert without == captured


def test_where_udev_lists_nothing_sysfs_is_asked(tmp_path: Path) -> None:
    testbed = tmp_path / "empty.umockdev"
    testbed.write_text("P: /devices/x\nE: SUBSYSTEM=platform\n")
    found = scan(Path("/"), testbed=testbed)
    assert found == {"source": "sysfs", "pmus": [], "other": [], "libudev": True}
