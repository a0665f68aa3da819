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
        """Run `pmuctl vm VERB NAME …` in the lab: the first word is the verb."""
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
def reference_vm(
    lab: Lab, *options: str, name: str | None = None, preloaded: bool = True
) -> Iterator[ReferenceVm]:
    """A reference VM whose window is open, unless its options say otherwise; ended at the end."""
    name = name or f"vm{next(_numbers)}"
    words = ["python3", "-m", "tests.lab.vmm", "--name", name, *options]
    job = lab.start(words, preloaded=preloaded)
    try:
        with lab.journal.on_failure(f"before {name} was ended"):
            yield ReferenceVm(lab, name, job)
    finally:
        if job.status is None:
            job.kill()
            job.wait()
        # of one that was killed; the lab may be that of other files' tests, too
        lab.run(["rm", "-f", f"/run/pmuctl/{name}.sock"])


def pmuctl(lab: Lab, *words: str, preloaded: bool = True, **options: Any) -> Result:
    """Run one pmuctl command in the lab.

    It is executed, instead of forked with all imports done, if another user is to run it or
    `preloaded` is false: where start-up, rights, signals or limits are what is tested.
    """
    preloaded = preloaded and options.get("user") is None
    return lab.run(["pmuctl", *words], preloaded=preloaded, **options)


def start_pmuctl(lab: Lab, *words: str) -> Job:
    """Start one pmuctl command in the lab, forked with all imports done."""
    return lab.start(["pmuctl", *words], preloaded=True)


def clear_sockets(lab: Lab) -> None:
    """Remove what VMMs that were killed have left: no VM is to run any more."""
    lab.run(["sh", "-c", "rm -f /run/pmuctl/*.sock* /run/user/*/pmuctl/*.sock*"], check=True)
