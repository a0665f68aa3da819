# SPDX-License-Identifier: Apache-2.0
"""A Linux guest's initial file system: counts on each CPU, tells a line of JSON, powers off."""

import json
from dataclasses import dataclass
from pathlib import Path

from tests.lab.archive import unpack
from tests.lab.workloads.counter import counter_program

APPEND = "console=ttyAMA0 panic=-1 quiet"
"""The guest's command line; `rounds=N` added tells N lines, a second apart."""

INIT = r"""#!/bin/busybox sh
/bin/busybox mkdir -p /dev /proc /sys
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
rounds=1
for word in $(cat /proc/cmdline); do
    case $word in rounds=*) rounds=${word#rounds=} ;; esac
done
pmu=$(ls -d /sys/bus/event_source/devices/armv8_* 2>/dev/null | head -n 1)
events=$(ls "$pmu/events" 2>/dev/null | sed 's/.*/"&"/' | paste -sd,)
n=0
while [ $n -lt $rounds ]; do
    n=$((n + 1))
    cpus=
    for cpu in $(ls /sys/devices/system/cpu | grep '^cpu[0-9]'); do
        cpu=${cpu#cpu}
        set -- $(taskset -c $cpu /bin/counter | od -A n -t d8)
        counted=$(printf '{"cpu":%d,"cycles":%d,"event_0x11":%d}' $cpu $1 $2)
        cpus=$cpus${cpus:+,}$counted
    done
    form='{"guest":"linux","pmu":"%s","events":[%s],"cpus":[%s]}\n'
    printf "$form" "${pmu##*/}" "$events" "$cpus"
    [ $n -eq $rounds ] || sleep 1
done
# waits until the console has taken it all: the kernel's last words overtake what it has not
stty -echo
poweroff -f
"""


def fill_initrd(root: Path, busybox: Path) -> None:
    """Put the file system into a directory; `busybox` is the package."""
    scratch = root.with_suffix(".busybox")
    unpack(busybox, scratch)
    (root / "bin").mkdir()
    found = next(path for path in scratch.rglob("bin/busybox") if path.is_file())
    found.rename(root / "bin/busybox")
    (root / "bin/counter").write_bytes(counter_program())
    (root / "bin/counter").chmod(0o755)
    (root / "init").write_text(INIT)
    (root / "init").chmod(0o755)


@dataclass(frozen=True, slots=True)
class Counted:
    """What a CPU of the guest counted over one loop; a negative number is an errno."""

    cpu: int
    cycles: int
    event_0x11: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the guest; without a vPMU `pmu` is empty."""

    pmu: str
    events: list[str]
    cpus: list[Counted]


def parse_lines(console: str) -> list[Line]:
    """What the guest has told so far."""
    lines = [line.strip() for line in console.splitlines()]
    told = [json.loads(line) for line in lines if line.startswith('{"guest":"linux"')]
    return [
        Line(its["pmu"], its["events"], [Counted(**counted) for counted in its["cpus"]])
        for its in told
    ]
