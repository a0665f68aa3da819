# SPDX-License-Identifier: Apache-2.0
"""Reference VMs in the lab, as the tests and the demonstration use them."""

import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lab.errors import Result
from tests.lab.job import Job
from tests.lab.machine import Lab

_numbers = itertools.count(1)


class ReferenceVm:
    """One reference VM in the lab, from its start to its end."""

    def __init__(self, lab: Lab, name: str, job: Job) -> None:
        self.lab = lab
        self.name = name
        self.job = job
        window = self._event("window")
        self.pid = int(window["pid"])
        self.tids = [int(tid) for tid in window["tids"]]

    def pmuctl(self, *words: str, **options: Any) -> Result:
        """`pmuctl vm VERB NAME …` in the lab: the first word is the verb."""
        return pmuctl(self.lab, "vm", words[0], self.name, *words[1:], **options)

    def set(self, *words: str) -> None:
        """`vm set`, which must succeed."""
        ran = self.pmuctl("set", *words)
        assert ran.status == 0, ran

    def finish(self) -> list[dict[str, Any]]:
        """Release the VM and wait for its end; what its guest reported, a dict a line."""
        ran = self.pmuctl("release")
        assert ran.status == 0, ran
        return self.reports()

    def reports(self) -> list[dict[str, Any]]:
        """Wait for the end of a VM that goes on by itself; what its guest reported."""
        result = self.job.wait()
        assert result.status == 0, result
        return self.lines()

    def lines(self) -> list[dict[str, Any]]:
        """What its guest has reported so far."""
        whole = self.job.raw("stdout").decode().rpartition("\n")[0]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if "vcpu" in line]

    def _event(self, name: str) -> dict[str, Any]:
        match = self.job.wait_for(rf'(?m)^(\{{"event": "{name}".*\}})$')
        event: dict[str, Any] = json.loads(match[1])
        return event


@contextmanager
def reference_vm(lab: Lab, *options: str, name: str | None = None) -> Iterator[ReferenceVm]:
    """A reference VM whose window is open, unless its options say otherwise; ended at the end."""
    name = name or f"vm{next(_numbers)}"
    job = lab.start(["python3", "-m", "tests.lab.vmm", "--name", name, *options])
    try:
        yield ReferenceVm(lab, name, job)
    finally:
        if job.status is None:
            job.kill()
            job.wait()
        # of one that was killed; the lab may be that of other files' tests, too
        lab.run(["rm", "-f", f"/run/pmuctl/{name}.sock"])


def pmuctl(lab: Lab, *words: str, **options: Any) -> Result:
    """One pmuctl command in the lab."""
    return lab.run(["pmuctl", *words], **options)


def clear_sockets(lab: Lab) -> None:
    """Remove what VMMs that were killed have left: no VM is to run any more."""
    lab.run(["sh", "-c", "rm -f /run/pmuctl/*.sock* /run/user/*/pmuctl/*.sock*"], check=True)
