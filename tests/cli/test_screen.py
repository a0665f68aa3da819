# SPDX-License-Identifier: Apache-2.0
"""What a terminal of 80 by 24 shows first: what matters, each line whole, colour never alone."""

import io
import re

import pytest

from pmuctl.cli.main import main
from pmuctl.model.cpuset import CpuSet
from tests.cli.conftest import Machine
from tests.fakes.vmm import FakeVm, fake_vmm

A72 = "armv8_cortex_a72"
COLUMNS, LINES = 80, 24


class Terminal(io.StringIO):
    """A text that takes itself for a terminal."""

    def isatty(self) -> bool:
        """Return True: it shall be one."""
        return True


def show(machine: Machine, *words: str, **environ: str) -> str:
    """Return what a command shows on a terminal of 80 columns, notes last."""
    out, err = Terminal(), Terminal()
    main(list(words), machine.env(out, err, environ={"COLUMNS": str(COLUMNS), **environ}))
    return out.getvalue() + err.getvalue()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9]*m", "", text)


@pytest.fixture
def host(machine: Machine) -> Machine:
    """A VM that was released, one thread of which may leave its PMU."""
    vm = machine.start(FakeVm("web1"))
    machine.threads = vm.threads
    assert machine.run("vm", "set", "web1", "pmu", A72).status == 0
    assert machine.run("vm", "release", "web1").status == 0
    vm.initialise()
    vm.run()
    vm.threads.masks[1002] = CpuSet.parse("0-3")
    return machine


@pytest.mark.parametrize("words", ["vm show web1", "vm list", "doctor web1", "affinity check"])
def test_the_first_screen_has_what_matters_and_no_line_is_too_long(
    host: Machine, words: str
) -> None:
    lines = plain(show(host, *words.split())).splitlines()
    long = [line for line in lines if len(line) > COLUMNS and " " in line.strip()]
    # a path or a note's command is one word, and stays whole
    assert [line for line in long if "SOCKET" not in line] == []
    screen = "\n".join(lines[:LINES])
    for word in ("web1", "may run on CPUs 0-1" if words != "affinity check" else "fail-entry"):
        assert word in re.sub(r"\s+", " ", screen)
    if words == "vm show web1":
        assert len(lines) <= LINES, lines
        for word in ("running", A72, "sealed", "SINCE"):
            assert word in screen


def test_all_columns_of_one_vm_are_a_record(host: Machine) -> None:
    text = plain(show(host, "vm", "list", "web1", "-O"))
    assert re.search(r"^NAME +web1\nSTATE +running\n", text)
    assert re.search(r"^ATTRIBUTES +", text, re.MULTILINE)
    # not on a pipe
    assert len(host.run("vm", "list", "web1", "-O").stdout.splitlines()) == 2


def test_a_long_name_does_not_make_the_rest_of_its_row_wrap(host: Machine) -> None:
    name = "a-name-that-somebody-gave-to-a-virtual-machine-of-a-cluster-in-2026"
    fake_vmm(host.proc, 5120, ("qemu-system-aarch64", "-name", name))
    lines = plain(show(host, "vm", "list")).splitlines()
    assert name in lines
    assert all(len(line) <= COLUMNS for line in lines[: lines.index(name) + 3])


def test_colour_is_only_on_a_terminal_that_may_have_it_and_never_alone(host: Machine) -> None:
    coloured = show(host, "vm", "list", TERM="xterm")
    assert "\x1b[31mno\x1b[0m" in coloured
    assert "\x1b[32mrunning\x1b[0m" in coloured
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert show(host, "vm", "list", **environ) == plain(coloured)
    assert "\x1b" not in host.run("vm", "list").stdout
    assert "\x1b[31mFAIL\x1b[0m" in show(host, "doctor", "web1", TERM="xterm")


def test_times_are_local_in_text_seconds_for_programs_and_both_in_json(
    host: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json
    import time

    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        vm = json.loads(host.run("vm", "show", "web1", "-J").stdout)["vm"]
        text = host.run("vm", "show", "web1", "-o", "SINCE").stdout
        programs = [
            host.run("vm", "list", "web1", "-n", "-o", "SINCE", "--format", name).stdout.split()
            for name in ("csv", "tsv", "raw")
        ]
    finally:
        monkeypatch.undo()
        time.tzset()
    assert isinstance(vm["since"], int)
    assert vm["since_iso"].endswith("+09:00")
    assert text.split() == ["SINCE", vm["since_iso"]]
    assert programs == [[str(vm["since"])]] * 3


def test_an_event_of_monitor_is_whole_on_a_terminal(host: Machine) -> None:
    """Its time is that of the day, and its text is wrapped between words, below itself."""
    lines = show(host, "monitor", "web1", "--timeout", "0").splitlines()
    start = next(number for number, line in enumerate(lines) if "vcpu-left" in line)
    assert re.match(r"\d\d:\d\d:\d\d  vcpu-left +web1 ", lines[start])
    what = lines[start].index("vCPU 1")
    rest = [line for line in lines[start + 1 :] if line.startswith(" " * what)]
    said = " ".join([lines[start][what:], *(line.strip() for line in rest)])
    assert said.endswith("most VMMs end the VM, and QEMU spins at 100 %")
    assert all(len(line) <= COLUMNS for line in (lines[start], *rest))


LONG = "a-name-for-a-virtual-machine-of-a-cluster-in-2026"


def test_an_error_is_wrapped_between_words_and_its_command_is_left_whole(host: Machine) -> None:
    text = show(host, "vm", "set", "web1", "pmu", "armv8_cortex_a53")
    assert "  why: KVM takes PMU settings only before a VM first runs, through a vCPU" in text
    assert all(len(line) <= COLUMNS for line in text.splitlines())
    # not on a pipe, and not in JSON
    piped = host.run("vm", "set", "web1", "pmu", "armv8_cortex_a53").stderr
    assert " ".join(text.split()) == " ".join(piped.split())
    assert len(piped.splitlines()) == 4
    assert len(show(host, "vm", "set", "web1", "pmu", "armv8_cortex_a53", "-J").splitlines()) == 1
    fix = next(line for line in show(host, "vm", "show", LONG).splitlines() if "fix:" in line)
    assert fix == "  fix: pmuctl vm list"


def test_an_event_of_a_vm_with_a_long_name_is_told_below_it(host: Machine) -> None:
    fake_vmm(host.proc, 5120, ("qemu-system-aarch64", "-name", LONG))
    assert host.threads
    host.threads.masks |= dict.fromkeys(range(5120, 5124), CpuSet.parse("0-3"))
    lines = show(host, "monitor", LONG, "--timeout", "0").splitlines()
    assert all(len(line) <= COLUMNS for line in lines if LONG not in line)
    heads = [line for line in lines if "  vcpu-left" in line]
    assert heads
    assert all(line.endswith(LONG) for line in heads)


def test_what_a_terminal_shows_below_a_table_is_not_in_the_table_too(host: Machine) -> None:
    text = plain(show(host, "doctor", "web1"))
    assert text.splitlines()[0].split() == ["ID", "SUBJECT", "RESULT", "WHY"]
    assert text.count("pmuctl affinity align web1") == 1
    assert "FIX" in host.run("doctor", "web1").stdout.splitlines()[0].split()
    for words in (("-o", "NAME,MEANS"), ("-O",)):
        assert plain(show(host, "vm", "list", *words)).count("vCPU 1 may run on") == 1
