# SPDX-License-Identifier: Apache-2.0
"""VMMs of every kind at once on one host: each is listed for what it is, to each who may know it.

What pmuctl tells is held against what the VMMs say of themselves, and what a shell reads in /proc
and debugfs.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pytest

from pmuctl.model.cpuset import CpuSet
from tests.lab.errors import Result
from tests.lab.job import Job
from tests.lab.machine import Lab
from tests.lab.runs import (
    A53,
    A72,
    CPUS,
    PMUS,
    by_name,
    running,
    shell,
    started,
    threads_of,
    wait_nothing_left,
)
from tests.lab.sequences import is_default_of_maker
from tests.lab.vmms import lkvm, put_bare_metal, qemu, runs
from tests.lab.vms import clear_sockets, pmuctl, reference_vm
from tests.lab.workloads.bare import End

ADMIN, STRANGER = "1000:{group}", "1001:1001"
"""A user of group kvm, and one who is in no group."""
HOME = "/run/user/{}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """One VM as it is known without pmuctl: its process, and the thread of each vCPU.

    `pmu` is the one that pmuctl was told to give it, or that this kernel gives to all, None where
    that depends on where its VMM was.
    """

    pid: int
    tids: Mapping[int, int]
    pmu: str | None = None
    state: str = "running"
    window: str = "sealed"

    def aligned(self, masks: Mapping[int, str]) -> bool | None:
        """Whether each vCPU stays on its PMU; None where that is so for only one of two PMUs."""
        sets = [frozenset(CpuSet.parse(mask)) for mask in masks.values()]
        kept = {pmu: all(its <= CPUS[pmu] for its in sets) for pmu in PMUS}
        if self.pmu:
            return kept[self.pmu]
        return None if any(kept.values()) else False


def users(lab: Lab) -> tuple[str, str]:
    """Both, their runtime directories made."""
    group = shell(lab, "stat -c %g /dev/kvm").strip()
    for uid in (1000, 1001):
        shell(lab, f"mkdir -p {HOME.format(uid)} && chown {uid} {HOME.format(uid)}")
    return ADMIN.format(group=group), STRANGER


def see(lab: Lab, *words: str, user: str | None = None) -> Result:
    """A command of pmuctl that only looks."""
    env = {} if user is None else {"XDG_RUNTIME_DIR": HOME.format(user.partition(":")[0])}
    ran = pmuctl(lab, *words, user=user, env=env)
    assert ran.status == 0, ran
    return ran


def masks(lab: Lab, pid: int, tids: Mapping[int, int]) -> dict[int, str]:
    """By vCPU, the CPUs that its thread may run on."""
    its = {thread.tid: thread.cpus for thread in threads_of(lab, pid)}
    return {vcpu: its[tid] for vcpu, tid in tids.items()}


def unreadable(lab: Lab, user: str) -> int:
    """How many processes have descriptors that a user may not see: not the kernel's own."""
    script = """
        for p in /proc/[0-9]*; do
            if [ -n "$(tr -d '\\0' <$p/cmdline)" ] && ! ls $p/fd >/dev/null 2>&1; then echo $p; fi
        done"""
    return len(lab.run(["sh", "-c", script], user=user, check=True).stdout.splitlines())


@pytest.fixture
def host(qemu_lab: Lab) -> Iterator[tuple[Lab, dict[str, Known]]]:
    """A host with a plain QEMU, one under pmuctl run, a kvmtool with a helper, a reference VM
    that waits, and a user's own kvmtool: what is known of each, by its name."""
    lab = qemu_lab
    clear_sockets(lab)
    admin, _ = users(lab)
    guest = put_bare_metal(lab, End.WFI)
    threads = ("-name", "guest=plain,debug-threads=on")
    vmm = qemu("7.2", *guest, *threads)
    with ExitStack() as stack:
        enter = stack.enter_context
        under = enter(running(lab, "--pmu", A72, vmm=vmm, name="under", preloaded=True))
        plain = enter(started(lab, *vmm, said=r"(?s)(GUEST.*\n){2}"))
        says = r'(?s)("event": "run".*){2}'
        tools = enter(started(lab, *lkvm_on("0-1", "tool"), said=says))
        mine = enter(started(lab, *lkvm_on("2-3", "mine"), said=says, user=admin))
        ref = enter(reference_vm(lab, "--create-cpus", "0-1", name="ref"))
        ref.set("pmu", A72)
        under.wait_reports()
        under.wait_given_back()
        # an ordinary user has no better evidence that it has run
        wait_guest_time(lab, mine.pid)
        yield (
            lab,
            {
                "plain": Known(
                    pid=plain.pid,
                    tids=by_name(lab, plain.pid, "CPU {}/KVM"),
                    pmu=None if is_default_of_maker(lab.kernel) else A53,
                ),
                "under": Known(pid=under.pid, tids=by_name(lab, under.pid, "CPU {}/KVM"), pmu=A72),
                "tool": Known(pid=tools.pid, tids=told(tools)),
                "mine": Known(pid=mine.pid, tids=told(mine)),
                "ref": Known(
                    pid=ref.pid,
                    tids=dict(enumerate(ref.tids)),
                    pmu=A72,
                    state="waiting",
                    window="open",
                ),
            },
        )
    wait_nothing_left(lab, "under", "ref")


def wait_guest_time(lab: Lab, pid: int) -> None:
    """Until the kernel has accounted a clock tick in the guest to the process."""
    script = """
        for i in $(seq 600); do
            [ "$(sed 's/.*) //' /proc/$1/stat | cut -d' ' -f41)" = 0 ] || exit 0
            sleep 0.1
        done
        exit 1"""
    lab.run(["sh", "-c", script, "sh", str(pid)], check=True, timeout=90)


def lkvm_on(cpus: str, name: str) -> list[str]:
    """A kvmtool that runs long, and has forked a process that has its descriptors."""
    return lkvm("--name", name, "--helper", "--vcpu-affinity", cpus, "--rounds", "100000")


def told(job: Job) -> dict[int, int]:
    """By vCPU, its thread as a stand-in has told."""
    return {its["vcpu"]: its["tid"] for its in runs(job.output())}


def check_list(lab: Lab, known: Mapping[str, Known], user: str | None = None) -> dict[str, Any]:
    """`vm list -J` has these VMs, each as it is known to be; all of it."""
    document: dict[str, Any] = json.loads(see(lab, "vm", "list", "-J", "-O", user=user).stdout)
    rows = {row["name"]: row for row in document["vms"] if row["state"] != "denied"}
    assert rows.keys() == known.keys()
    for name, its in known.items():
        row, cpus = rows[name], masks(lab, its.pid, its.tids)
        assert (row["pid"], row["vcpus"]) == (its.pid, len(its.tids)), name
        assert (row["state"], row["window"]) == (its.state, its.window), name
        assert {vcpu["vcpu"]: vcpu["tid"] for vcpu in row["vcpu_list"]} == its.tids, name
        assert (row["pmu"], row["candidates"]) == (its.pmu, [] if its.pmu else list(PMUS)), name
        assert row["aligned"] is its.aligned(cpus), name
    return document


def check_vcpus(lab: Lab, known: Mapping[str, Known], user: str | None = None) -> None:
    """`vm vcpus -J` has their threads, where those may be and where the PMU is."""
    rows = json.loads(see(lab, "vm", "vcpus", "-J", user=user).stdout)["vcpus"]
    assert {row["vm"] for row in rows} == known.keys()
    for name, its in known.items():
        cpus = masks(lab, its.pid, its.tids)
        found = {row["vcpu"]: row for row in rows if row["vm"] == name}
        assert {vcpu: row["tid"] for vcpu, row in found.items()} == its.tids
        assert {vcpu: str(CpuSet.of(row["affinity"])) for vcpu, row in found.items()} == cpus
        of_pmu = sorted(CPUS[its.pmu]) if its.pmu else None
        assert {vcpu: row["pmu_cpus"] for vcpu, row in found.items()} == dict.fromkeys(
            its.tids, of_pmu
        )


def check_table(lab: Lab, known: Mapping[str, Known], user: str | None = None) -> Result:
    """`vm list` says the same in a line each; what it said."""
    ran = see(lab, "vm", "list", user=user)
    lines = [line.split() for line in ran.stdout.splitlines()[1:]]
    assert sorted(line[0] for line in lines if line[1] != "denied") == sorted(known)
    for name, state, pid, vcpus, *pmu, _filter, window, aligned in lines:
        if state == "denied":
            continue
        its = known[name]
        assert (pid, vcpus, state, window) == (str(its.pid), "2", its.state, its.window)
        assert " ".join(pmu) == (its.pmu or f"{PMUS[0]} or {PMUS[1]}?")
        word = {True: "yes", False: "no", None: "?"}
        assert aligned == word[its.aligned(masks(lab, its.pid, its.tids))]
    return ran


def test_each_is_listed_for_what_it_is(host: tuple[Lab, dict[str, Known]]) -> None:
    """To root, who sees all; to a user of group kvm, who sees the own and what has a socket; to a
    stranger, who sees that there are sockets. What is missing is told."""
    lab, known = host
    document = check_list(lab, known)
    assert (document["unreadable"], document["partial"]) == (0, False)
    check_vcpus(lab, known)
    assert check_table(lab, known).stderr == ""

    admin, stranger = users(lab)
    seen = {name: its for name, its in known.items() if name not in ("plain", "tool")}
    document = check_list(lab, seen, admin)
    count = unreadable(lab, admin)
    assert count > 4
    assert document["unreadable"] == count
    check_vcpus(lab, seen, admin)
    missing = f"{count} processes cannot be read: their VMs are not listed\n"
    assert check_table(lab, seen, admin).stderr == missing

    document = check_list(lab, {}, stranger)
    assert {row["name"] for row in document["vms"]} == {"ref", "under"}
    for row in document["vms"]:
        # the record of pmuctl run tells the process, as ps does
        pid = known["under"].pid if row["name"] == "under" else None
        assert (row["pid"], row["vcpus"], row["pmu"]) == (pid, None, None), row
    count = unreadable(lab, stranger)
    assert document["unreadable"] == count
    assert f"{count} processes cannot be read" in check_table(lab, {}, stranger).stderr
