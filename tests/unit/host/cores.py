# SPDX-License-Identifier: Apache-2.0
"""Two core models, and a CPU that is of one."""

from pathlib import Path

from pmuctl.host.sysfs import PATH_CPU
from pmuctl.model.pmu import CoreModel

A55 = CoreModel(implementer=0x41, part=0xD05, name="Cortex-A55")
A76 = CoreModel(implementer=0x41, part=0xD0B, name="Cortex-A76")


def make_cpu(root: Path, cpu: int, midr: str) -> None:
    """The MIDR file of one CPU."""
    path = root / PATH_CPU / f"cpu{cpu}/regs/identification/midr_el1"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(midr)
