# SPDX-License-Identifier: Apache-2.0
"""Which worker runs what: the lab's by file and kernel, the longest first."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from tests.scheduling import LabScheduling, kernel_of, scope_of

FILE = "tests/lab/test_x.py"


def test_a_files_tests_of_one_kernel_stay_together() -> None:
    """Or each worker boots every kernel for each."""
    assert scope_of(f"{FILE}::test_y[6.1]") == scope_of(f"{FILE}::test_z[gap-6.1]")
    assert scope_of(f"{FILE}::test_y[newest]") == scope_of(f"{FILE}::test_y")
    assert scope_of(f"{FILE}::test_y[6.1]") != scope_of(f"{FILE}::test_y")
    assert scope_of(f"{FILE}::test_y") != scope_of("tests/lab/test_z.py::test_y")
    assert scope_of("tests/unit/test_x.py::test_y[6.1]") == "tests/unit/test_x.py"
    assert kernel_of(scope_of(f"{FILE}::test_y[6.1]")) == "6.1"
    assert kernel_of("tests/unit/test_x.py") == ""


def test_a_test_of_the_labs_tools_needs_no_lab() -> None:
    path = "tests/lab/selftest/unit/test_x.py"
    assert scope_of(f"{path}::test_y[6.1]") == path
    assert kernel_of(path) == ""
    assert kernel_of(scope_of("tests/lab/selftest/test_x.py::test_y[6.1]")) == "6.1"


class Node:
    """A worker that is sent what it is to run."""

    shutting_down = False

    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.sent: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


def scheduled(
    kept: Mapping[str, float], tests: list[str], *, crash_after: int | None = None
) -> list[list[str]]:
    """Deal out these tests to two workers that are done with one at once, in turn.

    With `crash_after` the first one crashes once it has done so many, and is replaced.
    """
    option = SimpleNamespace(loadscopereorder=True)
    config: Any = SimpleNamespace(option=option, getvalue=lambda name: ["2*popen"])
    log: Any = SimpleNamespace(loadscopesched=lambda *words: None)
    scheduling = LabScheduling(config, log, kept)
    nodes: list[Any] = []

    def add() -> None:
        nodes.append(node := Node(f"gw{len(nodes)}"))
        scheduling.add_node(node)
        scheduling.add_node_collection(node, tests)

    add()
    add()
    scheduling.schedule()
    done = [0, 0, 0]
    while any(done[n] < len(node.sent) for n, node in enumerate(nodes)):
        for n, node in enumerate(nodes):
            if n == 0 and done[n] == crash_after:
                scheduling.remove_node(node)
                del node.sent[done[n] :]
                crash_after = None
                add()
                scheduling.schedule()
            if done[n] < len(node.sent):
                scheduling.mark_test_complete(node, node.sent[done[n]])
                done[n] += 1
    return [[tests[index] for index in node.sent] for node in nodes]


def test_the_labs_come_first_the_longest_before_others() -> None:
    tests = ["tests/unit/test_a.py::test_1", f"{FILE}::test_1", "tests/lab/test_z.py::test_1"]
    kept = {"tests/unit/test_a.py": 500.0, f"{FILE} on newest": 3.0}
    first, second = scheduled(kept, tests)
    assert first[0] == "tests/lab/test_z.py::test_1"  # nobody knows how long it takes
    assert [first[0], second[0]] == [tests[2], tests[1]]
    assert sorted([*first, *second]) == sorted(tests)


def test_what_a_worker_that_crashed_has_left_is_run_once() -> None:
    tests = [f"{FILE}::test_{n}" for n in range(4)] + [f"tests/unit/{n}.py::x" for n in range(9)]
    for count in range(1, 6):
        first, second, new = scheduled({}, tests, crash_after=count)
        assert (len(first), sorted([*first, *second, *new])) == (count, sorted(tests))


def test_a_worker_stays_with_its_kernel() -> None:
    tests = [f"tests/lab/test_{n}.py::test_x[{k}]" for n in "abcd" for k in ("6.1", "newest")]
    kept = {f"tests/lab/test_{n}.py on {k}": ord(n) for n in "abcd" for k in ("6.1", "newest")}
    first, second = scheduled(kept, tests)
    for ran in (first, second):
        assert len({test.partition("[")[2] for test in ran[:3]}) == 1
    assert sorted([*first, *second]) == sorted(tests)
