# SPDX-License-Identifier: Apache-2.0
"""What a supervisor leaves in a runtime directory: the record of a VM, and its socket."""

import os
import socket

from pmuctl.control.runtime.start_record import Record
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter
from pmuctl.model.settings_change import SettingsChange
from tests.cli.conftest import Machine

A72 = "armv8_cortex_a72"
VMM, START = 4121, 777
RECORD = Record(
    name="web1",
    pid=VMM,
    start=START,
    supervisor=os.getpid(),
    command=("qemu-system-aarch64", "-append", "a b"),
    began=1_700_000_000,
    pmu=(11, A72),
    filter=EventFilter(Action.DENY, EventSet.of_ranges([(0x11, 1)])),
    cpus=CpuSet.parse("2-3"),
    applied=(
        SettingsChange(1_700_000_000, "pmuctl run", ("SET_PMU",)),
        SettingsChange(1_700_000_009, "uid 0, pid 9", ("FILTER",)),
    ),
)


def dead_socket(host: Machine, name: str = "web1") -> None:
    with socket.socket(socket.AF_UNIX) as its:
        its.bind(str(host.runtime / f"{name}.sock"))
