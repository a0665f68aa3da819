# SPDX-License-Identifier: Apache-2.0
"""Which of the workers runs which tests, and in which order."""

from collections.abc import Mapping
from itertools import takewhile

import pytest
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]
from xdist.workermanage import WorkerController  # type: ignore[import-untyped]

from tests.lab.hosts import ALL_KERNELS

LAB = "tests/lab/"
OF_TOOLS = "tests/lab/selftest/unit/"
"""The tests of the lab's tools that need no emulated host."""
ON = " on "
UNKNOWN_SECONDS = 60.0
"""Of a file of the lab's that nobody has timed yet: early, so that it is not waited for."""


class LabScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Deals out files of tests, the longest first, and the lab's before others, by kernel.

    Dealing out single tests takes as long as running them. Files of one kernel share their labs,
    so a worker goes on with the kernel it has as long as there is some of it left. Not by xdist's
    own groups: with pytest 9.2 xdist 3.8 loses them, and says nothing.
    """

    def __init__(
        self, config: pytest.Config, log: Producer, kept_seconds: Mapping[str, float]
    ) -> None:
        super().__init__(config, log)
        self._kept = kept_seconds
        self._kernels: dict[WorkerController, str] = {}

    def remove_node(self, node: WorkerController) -> str | None:
        """Take back what a worker that has crashed had not run, and only that."""
        self._kernels.pop(node, None)
        work = self.assigned_work[node]
        for scope in [scope for scope, tests in work.items() if all(tests.values())]:
            del work[scope]
        crashed: str | None = super().remove_node(node)
        self._sort()
        return crashed

    def _sort(self) -> None:
        for scope in sorted(self.workqueue, key=self._rank):
            self.workqueue.move_to_end(scope)

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        if not self._kernels:
            self._sort()
        scope = self._choose(node)
        self._kernels[node] = kernel_of(scope)
        self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)

    def _rank(self, scope: str) -> tuple[bool, float]:
        """The lab's first, then the longest."""
        is_of_lab = bool(kernel_of(scope))
        seconds = self._kept.get(scope, UNKNOWN_SECONDS if is_of_lab else 0.0)
        return not is_of_lab, -seconds

    def _choose(self, node: WorkerController) -> str:
        """The first one with the kernel this worker has, or with one that no other has."""
        kernel = self._kernels.get(node)
        of_others = {self._kernels.get(other) for other in self.nodes if other is not node}
        left: list[str] = [*self.workqueue]
        of_lab = [*takewhile(kernel_of, left)]
        for scopes in (
            (scope for scope in of_lab if kernel_of(scope) == kernel),
            (scope for scope in of_lab if kernel_of(scope) not in of_others),
            left,
        ):
            if scope := next(iter(scopes), None):
                return scope
        raise ValueError("there is nothing left")


def scope_of(nodeid: str) -> str:
    """Return what one worker is to run, and what is timed: a file, or "FILE on KERNEL"."""
    path, _, test = nodeid.partition("::")
    if not is_of_lab(path):
        return path
    parameters = test.partition("[")[2].removesuffix("]").split("-")
    kernel = next((word for word in parameters if word in ALL_KERNELS), ALL_KERNELS[-1])
    return f"{path}{ON}{kernel}"


def kernel_of(scope: str) -> str:
    """Return the kernel of a scope, "" if it needs no lab."""
    return scope.partition(ON)[2] if is_of_lab(scope) else ""


def is_of_lab(path: str) -> bool:
    """Return True for a file of tests, below the project's root, that need an emulated host."""
    return path.startswith(LAB) and not path.startswith(OF_TOOLS)
