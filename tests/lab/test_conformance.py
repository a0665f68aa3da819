# SPDX-License-Identifier: Apache-2.0
"""The reference VMM keeps to its own protocol, on real kernels and for real."""

import json

from tests.lab.machine import Lab
from tests.lab.vms import pmuctl, reference_vm

A72 = "armv8_cortex_a72"


def test_the_reference_vmm_passes_planned_and_applied(lab: Lab) -> None:
    with reference_vm(lab, "--forever") as vm:
        path = f"/run/pmuctl/{vm.name}.sock"
        planned = pmuctl(lab, "conformance", path, "--deadline", "30", "-J")
        shown = json.loads(vm.pmuctl("show", "-J").stdout)["vm"]
        assert (shown["window"], shown["pmu"]) == ("open", None)
        applied = pmuctl(lab, "conformance", path, "--deadline", "30", "-J", "--apply", A72)
        vm.job.wait_for('"cycles"')
        assert vm.lines()
    for ran in (planned, applied):
        rows = json.loads(ran.stdout)["checks"]
        assert [row for row in rows if row["result"] != "pass"] == []
        assert (ran.status, ran.stderr) == (0, "")
    assert len(json.loads(applied.stdout)["checks"]) > len(json.loads(planned.stdout)["checks"])
