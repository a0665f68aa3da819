# SPDX-License-Identifier: Apache-2.0
"""A vCPU that is sealed before it is closed: which answers of KVM say that it is."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pmuctl.host.procfs import Procfs
from pmuctl.launch.apply import Applier
from pmuctl.launch.ioctls import IoctlCall, deny_all, ioctl_of, lock
from pmuctl.launch.observer import VmObserver
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.arch import native_arch
from pmuctl.launch.trace.tracee import StuckError
from pmuctl.launch.trace.tracer import Tracer
from pmuctl.launch.vmm_stderr import VmmStderr
from pmuctl.uapi.kvm import KVM_ARM_VCPU_INIT, KVM_SET_DEVICE_ATTR
from tests.launch.native import read_vmm_processes
from tests.launch.scripted import FakeTracee

IOCTLS = (ioctl_of(lock()), ioctl_of(deny_all()))


class Answering(FakeTracee):
    """A thread in which each ioctl gets the next of these answers."""

    def __init__(self, *answers: int | OSError) -> None:
        super().__init__()
        self.answers = list(answers)
        self.requests: list[int] = []

    def ioctl(self, fd: int, request: int, argument: bytes, pointer: int | None = None) -> int:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return -answer


def seal(thread: Answering, ioctls: tuple[IoctlCall, ...] = IOCTLS) -> bool:
    spec = LaunchSpec(name="vm", socket=Path("/nonexistent"), command=("vmm",))
    applier = Applier(
        spec,
        cast(VmObserver, SimpleNamespace()),
        VmmStderr(-1),
        read_vmm_processes(Tracer(native_arch(), Procfs())),
    )
    return applier.seal(thread, 3, ioctls)


def test_it_is_initialised_first() -> None:
    thread = Answering(0, 0, 0)
    assert seal(thread)
    assert thread.requests == [KVM_ARM_VCPU_INIT, KVM_SET_DEVICE_ATTR, KVM_SET_DEVICE_ATTR]


def test_nothing_is_done_where_there_are_no_settings() -> None:
    assert seal(Answering(), ())


@pytest.mark.parametrize(
    "answers",
    [
        (errno.EINVAL, 0, 0),  # its VM has other features, and takes attributes
        (errno.EINVAL, errno.ENODEV, errno.ENODEV),  # its VM has no vPMU
        (0, errno.EBUSY, errno.EBUSY),  # its VM has run
    ],
)
def test_its_vm_may_have_its_settings_or_no_vpmu(answers: tuple[int, ...]) -> None:
    assert seal(Answering(*answers))


@pytest.mark.parametrize(
    "answers",
    [
        (errno.EPERM,),  # the VMM's own seccomp filter
        (errno.ENODEV,),  # a CPU without a PMU
        (0, errno.ENXIO),
        (0, 0, errno.EINVAL),
        (OSError(errno.EFAULT, "no room below the stack"),),
    ],
)
def test_any_other_answer_leaves_it_open(answers: tuple[int | OSError, ...]) -> None:
    assert not seal(Answering(*answers))


def test_that_its_thread_is_gone_or_stuck_is_no_answer() -> None:
    for error in (ProcessLookupError(), StuckError(1)):
        with pytest.raises(type(error)):
            seal(Answering(error))
