# SPDX-License-Identifier: Apache-2.0
"""What is read of a process to know its VMM, and the name that kvmtool gives a VM."""

from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.manage.inventory.program import identify_program, read_program
from pmuctl.model.vmm.identity import VmmKind
from tests.fakes.vmm import fake_vmm

PID = 6000


def procs(root: Path, *argv: str, comm: str = "qemu-system-aar", status: str = "") -> Procfs:
    fake_vmm(root, PID, argv, comm=comm)
    with (root / str(PID) / "status").open("a") as file:
        file.write(status)
    return Procfs(root)


def test_the_name_of_the_main_thread_is_read_only_if_the_command_line_names_no_vmm(
    tmp_path: Path,
) -> None:
    assert read_program(procs(tmp_path / "a", "kvm", "-S"), PID) == (("kvm", "-S"), "")
    assert read_program(procs(tmp_path / "b", "x", "-S"), PID) == (("x", "-S"), "qemu-system-aar")
    assert read_program(procs(tmp_path / "c"), PID) == ((), "qemu-system-aar")


@pytest.mark.parametrize(("name", "kind"), [("fc_vcpu {}", VmmKind.LIBKRUN), ("vcpu{}", None)])
def test_a_program_that_is_not_known_is_identified_by_its_threads(
    tmp_path: Path, name: str, kind: VmmKind | None
) -> None:
    fake_vmm(tmp_path, PID, ["agent"], comm="agent", thread_name=name)
    found = Procfs(tmp_path)
    assert identify_program(found, PID, *read_program(found, PID)).kind is kind


@pytest.mark.parametrize(
    ("words", "status", "name"),
    [
        ("lkvm run", "", "guest-6000"),
        ("lkvm run -n mode=none", "NSpid:\t6000\n", "guest-6000"),
        ("lkvm run", "NSpid:\t6000\t31\t7\n", "guest-7"),
        ("lkvm run", "NSpid:\t6000\tx\n", "guest-6000"),
        ("lkvm run", "NSpid:\t6000" + "\t7" * 40 + "\n", "guest-6000"),
        ("lkvm run --name k1", "NSpid:\t6000\t7\n", "k1"),
        ("lkvm run --name --pmu", "NSpid:\t6000\t7\n", None),
        ("qemu-system-aarch64", "NSpid:\t6000\t7\n", None),
    ],
)
def test_a_vm_that_kvmtool_was_given_no_name_for_has_the_pid_that_kvmtool_sees(
    tmp_path: Path, words: str, status: str, name: str | None
) -> None:
    found = procs(tmp_path, *words.split(), status=status)
    assert identify_program(found, PID, *read_program(found, PID)).name == name
