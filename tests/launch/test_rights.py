# SPDX-License-Identifier: Apache-2.0
"""A user without privileges: what works behind the gate, and what is named when it does not."""

import ctypes
import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.failures import yama_scope
from tests.launch.conftest import Start
from tests.launch.native import HERE, PATIENCE, tracers, vmm, wait_for
from tests.skips import skip

NOBODY = 65534
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 0x40000


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Somebody without privileges: how to become them, a Python they can run, their KVM."""

    become: Callable[[], None]
    python: str
    kvm: int

    def vmm(self, *words: str) -> tuple[str, ...]:
        """The VMM of these tests, as they run it."""
        return vmm("--kvm", str(self.kvm), *words, executable=self.python)


def become_nobody() -> None:
    """For good, and without any group."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


def usable_python(become: Callable[[], None]) -> str | None:
    """An interpreter that can import the engine as that user."""
    code = (
        f"import sys; sys.path.insert(0, {str(HERE.parents[1])!r}); import pmuctl.launch.launcher"
    )
    for path in (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin:/bin")):
        if path is None:
            continue
        try:
            argv = [path, "-I", "-S", "-c", code]
            subprocess.run(argv, preexec_fn=become, check=True, capture_output=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return path
    return None


@pytest.fixture
def user(kvm: Start) -> Iterator[User]:
    """This user, or nobody where this is root; KVM comes as an open descriptor."""
    if yama_scope(Procfs()) > 1:
        skip("Yama lets only administrators trace", runs="with kernel.yama.ptrace_scope 0 or 1")
    become = become_nobody if os.geteuid() == 0 else lambda: None
    python = usable_python(become)
    if python is None:
        skip(
            f"no Python of this machine can read {HERE.parents[1]} as user {NOBODY}",
            runs="with a clone, and a python3 of 3.11 or later, that others may read",
        )
    fd = os.open("/dev/kvm", os.O_RDWR)
    yield User(become=become, python=python, kvm=fd)
    os.close(fd)


def test_a_user_needs_no_new_privs_and_no_more(kvm: Start, user: User) -> None:
    its = kvm(
        *user.vmm("--vcpus", "2", "--threads", "--run", "--pause", "last"),
        executable=user.python,
        preexec=user.become,
        pass_fds=[user.kvm],
    )
    its.hear("at", "last")
    wait_for(lambda: set(tracers(its.pid).values()) == {"0"}, "nobody traces it")
    its.go_on()
    end = its.all_said("end")[0]["end"]
    assert end == {"TracerPid": "0", "Seccomp": "2", "NoNewPrivs": "1"}
    assert its.status() == 0
    its.is_left_alone()
    assert len(its.events("applied")) == 2


def test_a_users_daemon(kvm: Start, user: User) -> None:
    its = kvm(
        *user.vmm("--fork", "--vcpus", "2", "--run"),
        executable=user.python,
        preexec=user.become,
        pass_fds=[user.kvm],
    )
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    its.is_left_alone()
    assert len(its.events("applied")) == 2


def test_a_vmm_that_is_not_dumpable_is_ended_and_told_why(kvm: Start, user: User) -> None:
    its = kvm(
        *user.vmm("--nodump", "--run"),
        executable=user.python,
        preexec=user.become,
        pass_fds=[user.kvm],
    )
    assert its.status() == -signal.SIGKILL
    assert its.all_said("ran") == []
    complaint = its.complaint()
    assert complaint.startswith(f"error: {its.name}: the VMM may not be traced\n"), complaint
    assert "PR_SET_DUMPABLE 0" in complaint
    assert "  now: the VMM was ended\n" in complaint
    its.is_left_alone()
    assert its.events("refused")
    assert its.events("failed") == []


def test_a_vmm_that_is_not_dumpable_starts_at_best_effort(kvm: Start, user: User) -> None:
    its = kvm(
        *user.vmm("--nodump", "--run", "--vcpus", "2"),
        executable=user.python,
        preexec=user.become,
        pass_fds=[user.kvm],
        orders={"best_effort": True},
    )
    assert [ran["result"] for ran in its.all_said("ran")] == [0, 0]
    assert its.status() == 0
    assert its.complaint().startswith(f"warning: {its.name}: the VMM may not be traced\n")
    its.is_left_alone()


def test_root_may_trace_what_is_not_dumpable(kvm: Start) -> None:
    if os.geteuid() != 0:
        skip("this is not root", runs="as root")
    its = kvm(*vmm("--nodump", "--run"))
    assert [ran["result"] for ran in its.all_said("ran")] == [0]
    its.is_left_alone()
    assert len(its.events("applied")) == 1


@pytest.mark.parametrize("limit", range(4, 16))
def test_with_few_descriptors_it_starts_or_says_that_these_are_too_few(
    gate: Start, limit: int
) -> None:
    """`ulimit -n`: each falls into another step of the supervisor's start."""
    its = gate(
        "true",
        supervisor=None,
        preexec=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
    )
    status, complaint = its.status(), its.complaint()
    assert (status == 0) or (status == 9 and "Too many open files" in complaint), complaint
    assert "check that this user can run it" not in complaint
    its.is_left_alone()


def hide_processes() -> None:
    """Give this process a /proc of its own that shows a user only what that user may trace."""
    libc = ctypes.CDLL(None, use_errno=True)
    made = [
        libc.unshare(CLONE_NEWNS),
        libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None),
        libc.mount(b"proc", b"/proc", b"proc", 0, b"hidepid=2"),
    ]
    if any(made):
        os._exit(ctypes.get_errno())


@pytest.mark.parametrize("best_effort", [False, True])
def test_a_vmm_that_hidepid_hides_from_its_supervisor_gets_an_answer(
    kvm: Start, user: User, *, best_effort: bool
) -> None:
    """It is not dumpable, so that its own user does not see it."""
    if os.geteuid() != 0:
        skip("this is not root", runs="as root, who may mount a /proc")

    def become_without_sight() -> None:
        hide_processes()
        user.become()

    its = kvm(
        *user.vmm("--nodump", "--run"),
        executable=user.python,
        preexec=become_without_sight,
        pass_fds=[user.kvm],
        orders={"best_effort": best_effort},
    )
    vcpu = its.hear("vcpu")
    assert (vcpu["result"] >= 0) is best_effort, vcpu
    assert vcpu["result"] >= 0 or vcpu["result"] == -errno.EPERM
    assert len(its.all_said("ran")) == int(best_effort)
    its.is_left_alone()
    complaint = its.complaint()
    assert "a thread that makes a vCPU is not in /proc: another pid namespace, or hidepid" in (
        complaint
    ), complaint
    assert its.events("failed") == its.events("applied") == []


def test_nothing_is_started_in_a_pid_namespace_without_a_proc_of_its_own(room: Path) -> None:
    if os.geteuid() != 0:
        skip("this is not root", runs="as root, who may make a pid namespace")
    code = "from pmuctl.cli.entry import run; run()"
    run = ["run", "--affinity", "0", "--best-effort", "--", "touch", str(room / "started")]
    inside = ("unshare", "--pid", "--fork", sys.executable, "-P", "-c", code, *run)
    ran = subprocess.run(inside, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ran.returncode == 9, ran
    assert ran.stderr.startswith("error: /proc is not that of this pid namespace\n"), ran
    assert list(room.iterdir()) == []
