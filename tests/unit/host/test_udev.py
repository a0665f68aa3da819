# SPDX-License-Identifier: Apache-2.0
"""The kernel's events of VMs and CPUs, from a stand-in for libudev and from this very kernel."""

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pmuctl.host.udev import NoUevents, Uevent, UeventBatch, UeventMonitor, open_uevents
from pmuctl.uapi.kvm import KVM_CREATE_VM
from tests.skips import skip

KVM = {"EVENT": "create", "PID": "4242", "COUNT": "1", "CREATED": "7"}


class Udev(ModuleType):
    """pyudev, as far as it is used: what is `sent` is received, an OSError is raised."""

    def __init__(self) -> None:
        super().__init__("pyudev")
        self.read, self.write = socket.socketpair()
        self.read.settimeout(0)
        self.queue: list[Any] = []
        self.filters: list[str] = []
        self.source = ""
        self.error: type[Exception] | None = None

    def send(self, *devices: Any) -> None:
        for its in devices:
            self.queue.append(its)
            self.write.send(b"x")

    # what pyudev has
    @property
    def Monitor(self) -> Any:  # noqa: N802
        return SimpleNamespace(from_netlink=self._from_netlink)

    def Context(self) -> None:  # noqa: N802
        return None

    def _from_netlink(self, _: object, *, source: str) -> Any:
        if self.error:
            raise self.error
        self.source = source
        return SimpleNamespace(
            filter_by=self.filters.append,
            start=lambda: None,
            fileno=self.read.fileno,
            poll=self._poll,
        )

    def _poll(self, timeout: float) -> Any:
        assert timeout == 0
        if not self.queue:
            return None
        self.read.recv(1)
        its = self.queue.pop(0)
        if isinstance(its, OSError):
            raise its
        return its


EARS: list[NoUevents] = []


def hearing() -> NoUevents:
    """An ear that is closed at the end of the test."""
    EARS.append(open_uevents())
    return EARS[-1]


def device(name: str, action: str, **properties: str) -> Any:
    return SimpleNamespace(sys_name=name, action=action, properties=properties)


@pytest.fixture
def udev(monkeypatch: pytest.MonkeyPatch) -> Iterator[Udev]:
    its = Udev()
    monkeypatch.setitem(sys.modules, "pyudev", its)
    yield its
    for ear in EARS:
        ear.close()
    EARS.clear()
    its.read.close()
    its.write.close()


def test_vms_and_cpus_are_heard_of_at_once(udev: Udev) -> None:
    ear = hearing()
    assert ear.is_open
    assert (udev.source, udev.filters) == ("kernel", ["misc", "cpu"])
    udev.send(device("kvm", "change", **KVM), device("cpu3", "offline"))
    began = time.monotonic()
    assert ear.wait(30) == UeventBatch(
        events=(
            Uevent(device="kvm", action="create", tid=4242),
            Uevent(device="cpu3", action="offline"),
        )
    )
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "other",
    [
        device("tun", "change", **KVM),
        device("kvm", "add"),
        device("kvm", "change", EVENT="other", PID="1"),
        device("cpu3", "add"),
        device("fuse", "online"),
    ],
)
def test_other_events_do_not_wake_it(udev: Udev, other: Any) -> None:
    udev.send(other)
    began = time.monotonic()
    assert hearing().wait(0.1) == UeventBatch()
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("pid", ["", "x", "-1", "9" * 30, "²"])
def test_a_thread_that_is_none_is_not_known(udev: Udev, pid: str) -> None:
    udev.send(device("kvm", "change", **KVM | {"PID": pid}))
    (event,) = hearing().wait(30).events
    assert event.tid is None


def test_what_was_dropped_is_told_and_it_hears_on(udev: Udev) -> None:
    ear = hearing()
    udev.send(OSError(errno.ENOBUFS, "no buffer space"), device("cpu1", "online"))
    heard = ear.wait(30)
    assert heard == UeventBatch(events=(Uevent(device="cpu1", action="online"),), is_lossy=True)
    assert ear.is_open


def test_an_ear_that_breaks_only_waits_from_then_on(udev: Udev) -> None:
    ear = hearing()
    udev.send(OSError(errno.ENETDOWN, "network is down"), device("cpu1", "online"))
    assert ear.wait(30) == UeventBatch(is_lossy=True)
    assert not ear.is_open
    began = time.monotonic()
    assert ear.wait(0.1) == UeventBatch()
    assert time.monotonic() - began >= 0.1


@pytest.mark.parametrize("error", [ImportError, OSError, AttributeError])
def test_without_libudev_or_netlink_it_only_waits(udev: Udev, error: type[Exception]) -> None:
    udev.error = error
    ear = open_uevents()
    assert type(ear) is NoUevents
    assert not ear.is_open
    assert ear.wait(0.01) == UeventBatch()


def test_without_pyudev_it_only_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyudev", None)
    assert type(open_uevents()) is NoUevents


@pytest.fixture
def ear() -> Iterator[UeventMonitor]:
    """The true pyudev, libudev and netlink, in a namespace that the kernel tells of VMs."""
    its = open_uevents()
    if not isinstance(its, UeventMonitor):
        skip(
            "no netlink, or no libudev, for this process",
            runs="with libudev.so.1, where netlink is allowed",
        )
    with closing(its):
        yield prepared(its)


def prepared(its: UeventMonitor) -> UeventMonitor:
    """It, having heard of a VM."""
    make_vms(1)
    if not heard_of(its, seconds=5, count=2)[0]:
        skip("the kernel tells this namespace of no VM", runs="in the first network namespace")
    return its


def make_vms(count: int) -> None:
    """Make VMs and end them at once; skips the test where that cannot be."""
    try:
        kvm = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        skip(f"/dev/kvm: {error}", runs="where this user may open it")
    try:
        for _ in range(count):
            os.close(fcntl.ioctl(kvm, KVM_CREATE_VM, 0))
    except OSError as error:
        skip(f"KVM_CREATE_VM: {error}", runs="where KVM makes VMs")
    finally:
        os.close(kvm)


def heard_of(ear: UeventMonitor, *, seconds: float, count: int) -> tuple[list[str], bool]:
    """What is heard of VMs of this process, and whether something was dropped."""
    heard: list[str] = []
    is_lossy = False
    until = time.monotonic() + seconds
    while len(heard) < count and (left := until - time.monotonic()) > 0:
        its = ear.wait(left)
        heard += [event.action for event in its.events if event.tid == os.getpid()]
        is_lossy |= its.is_lossy
    return heard, is_lossy


def test_this_kernel_tells_of_a_vm(ear: UeventMonitor) -> None:
    make_vms(2)
    heard, is_lossy = heard_of(ear, seconds=10, count=4)
    assert (heard, is_lossy) == (["create", "destroy"] * 2, False)


def test_what_this_kernel_drops_is_told_once_and_it_hears_on(ear: UeventMonitor) -> None:
    """pyudev's own poll() would fail for ever from then on."""
    with socket.socket(fileno=os.dup(ear._monitor.fileno())) as its:
        its.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    make_vms(100)
    heard, is_lossy = heard_of(ear, seconds=1, count=200)
    assert len(heard) < 200
    assert is_lossy
    assert ear.is_open
    make_vms(1)
    heard, is_lossy = heard_of(ear, seconds=10, count=2)
    assert (heard[-2:], is_lossy) == (["create", "destroy"], False)
