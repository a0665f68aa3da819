# SPDX-License-Identifier: Apache-2.0
"""The model says what the kernel does: call by call as in the table, and in random sequences.

The model is the module that `pmuctl vm set` plans with; what it needs to know of a kernel comes
from pmuctl's own probes in the same lab.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from pmuctl.host.kvm.cache import CAPS
from pmuctl.model.kvm_caps import KvmCaps
from tests.lab import randoms
from tests.lab.conftest import GetLab
from tests.lab.machine import Lab
from tests.lab.oracle import Host, first_difference, foretell, tell
from tests.lab.sequences import ATTRIBUTES, Group, Place, Script, read_table, to_json

RANDOM_ON_TWO, RANDOM_ELSEWHERE = 600, 60
PLACES = {"one": "A", "two": "AB", "three": "ABC", "gap": "AB-", "a72": "AB"}

EVERYWHERE = {
    "IRQ": {"OK", "ENODEV", "EBUSY", "EFAULT", "EINVAL", "EIO"},
    "INIT": {"OK", "ENODEV", "EBUSY", "ENXIO", "EINVAL", "EEXIST", "EIO"},
    "FILTER": {"OK", "ENODEV", "EBUSY", "EFAULT", "EINVAL", "EIO"},
    "SET_PMU": {"OK", "ENODEV", "EBUSY", "EFAULT", "ENXIO", "EIO"},
    "SET_NR_COUNTERS": {"ENODEV", "EBUSY", "EIO"},
    "get IRQ": {"OK", "ENODEV", "EFAULT", "EINVAL", "ENXIO"},
}
"""The errnos that each attribute can give; but for ENOMEM, which cannot be provoked."""

WHERE_IT_IS = {"SET_NR_COUNTERS": {"OK", "EFAULT", "EINVAL"}}
WHERE_IT_IS_NOT = {"SET_NR_COUNTERS": {"ENXIO"}}
WHERE_STRICT = {"FILTER": {"ENXIO"}}

Report = Callable[[str, object], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one lab answered, and what the model says to the same."""

    release: str
    probed: KvmCaps
    plain: str
    scripts: tuple[Script, ...]
    kernel: list[list[str]]
    model: list[list[str]]

    def differences(self) -> Iterator[str]:
        """Each sequence on which they differ, as far as needed."""
        for number, script in enumerate(self.scripts):
            kernel, model = self.kernel[number], self.model[number]
            index = first_difference(kernel, model)
            if index is not None:
                yield f"sequence {number}:\n{tell(script, kernel, model, index)}"

    def steps(self) -> int:
        """How many calls were made."""
        return sum(len(answers) for answers in self.kernel)

    def pairs(self) -> Counter[tuple[str, str]]:
        """How often each attribute gave each errno; `get IRQ` counts as an attribute."""
        return Counter(pair for n, s in enumerate(self.scripts) for pair in met(s, self.kernel[n]))


def met(script: Script, answers: Sequence[str]) -> Iterator[tuple[str, str]]:
    """The (attribute, errno) pairs of one sequence."""
    for step, answer in zip(script.steps, answers[1:], strict=False):
        match step.removeprefix("child ").split():
            case ["set", _, attr, *_] if attr in ATTRIBUTES:
                yield attr, answer
            case ["get", _, "IRQ", *_]:
                yield "get IRQ", answer.split()[0]


def drive(lab: Lab, scripts: Sequence[Script]) -> Run:
    """Make the sequences in the lab, and on the model."""
    ran = lab.run(
        ["python3", "-m", "tests.lab.driver"], stdin=to_json(scripts).encode(), timeout=300
    )
    assert ran.status == 0, ran.stderr
    said = json.loads(ran.stdout)
    probed = CAPS.read(said["probed"], "probed")
    pmceid = [int(text, 16) for text in re.findall(r"PMCEID\d=(\w+)", said["plain"])]
    host = Host(
        kernel=probed,
        places={its: Place(cpu=cpu, pmu=pmu) for its, (cpu, pmu) in said["places"].items()},
        pmceid=(pmceid[0], pmceid[1]),
    )
    return Run(
        release=said["release"],
        probed=probed,
        plain=said["plain"],
        scripts=tuple(scripts),
        kernel=said["answers"],
        model=[foretell(host, script) for script in scripts],
    )


def column(kernels: Sequence[str], series: str) -> str:
    """The measured kernel that a series is held against: itself, or the last one before it."""
    older = [its for its in kernels if numbers(its) <= numbers(series)]
    return max(older, key=numbers)


def numbers(series: str) -> list[int]:
    return [int(part) for part in series.split(".")]


def on_this_emulator(expected: str, measured: str, plain: str) -> str:
    """The expected report of a guest, where QEMU's CPU has the events it had then; else all else.

    `measured` is what a guest read with no filter then, `plain` what it reads now.
    """
    then, now = (re.findall(r"PMCEID\d=\w+", text) for text in (measured, plain))
    return expected if then == now else re.sub(r" PMCEID.*", "", expected)


@pytest.fixture(scope="module")
def runs() -> dict[str, Run]:
    """By kernel: the table and the random sequences, made in one go."""
    return {}


@pytest.fixture
def run(lab: Lab, runs: dict[str, Run], seed: int) -> Run:
    """What this kernel does on the host with two PMUs."""
    if lab.kernel not in runs:
        some = randoms.make(seed, RANDOM_ON_TWO, places=PLACES["two"])
        runs[lab.kernel] = drive(lab, [*(group.script() for group in read_table()), *some])
    return runs[lab.kernel]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """What the random sequences come from."""
    number: int = request.config.getoption("--kvm-seed")
    return number


def test_every_step_of_the_table_gives_what_it_gave(
    lab: Lab, run: Run, record_property: Report
) -> None:
    groups: list[Group] = read_table()
    series = column([*groups[0].rows[0].expected], lab.kernel)
    plain = {row.case: row.expected[series] for group in groups for row in group.rows}
    measured = plain["guest: no SET_PMU, on A's cpu"]
    wrong = []
    for group, answers in zip(groups, run.kernel, strict=False):
        assert answers[0] == "OK"
        for row, answer in zip(group.rows, answers[1:], strict=True):
            expected = on_this_emulator(row.expected[series], measured, run.plain)
            if expected != answer[: len(expected)]:
                wrong.append(f"{group.vm}: {row.step}: {answer}, in the table {expected}")
    assert wrong == [], "\n".join(wrong)
    record_property(
        "line",
        f"{run.release}: {sum(len(group.rows) for group in groups)} calls of the table give what "
        "they gave when it was made",
    )


def test_the_model_says_the_same_to_table_and_random_sequences(
    run: Run, record_property: Report, seed: int
) -> None:
    check(run, seed)
    record_property("line", f"{run.release}: {counts(run)} on two PMUs, all as the model says")


def test_every_errno_of_every_attribute_was_met(run: Run, record_property: Report) -> None:
    has_it = ATTRIBUTES["SET_NR_COUNTERS"] in run.probed.attributes
    tables = [EVERYWHERE, WHERE_IT_IS if has_it else WHERE_IT_IS_NOT]
    if run.probed.has_strict:
        tables.append(WHERE_STRICT)
    wanted = {(attr, error) for its in tables for attr, errors in its.items() for error in errors}
    assert wanted - set(run.pairs()) == set()
    record_property("line", f"{run.release}: {len(wanted)} pairs of attribute and errno met")


@pytest.mark.parametrize("host", ["one", "three", "gap", "a72"])
def test_random_sequences_on_other_hosts(
    get_lab: GetLab, kernel: str, host: str, record_property: Report, seed: int
) -> None:
    run = drive(get_lab(kernel, host), randoms.make(seed, RANDOM_ELSEWHERE, places=PLACES[host]))
    check(run, seed)
    record_property("line", f"{run.release}: {counts(run)} on host {host}, all as the model says")


def counts(run: Run) -> str:
    return f"{len(run.scripts)} sequences of {run.steps()} calls"


def check(run: Run, seed: int) -> None:
    found = list(run.differences())
    shortest = min(found, key=lambda text: text.count("\n"), default="")
    assert not found, (
        f"{run.release}: {len(found)} of {len(run.scripts)} sequences differ; the shortest is "
        f"{shortest}\nrepeat with --kvm-seed {seed}"
    )
