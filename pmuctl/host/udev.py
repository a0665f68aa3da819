# SPDX-License-Identifier: Apache-2.0
"""The one importer of pyudev: the perf event sources of this machine, and the kernel's events."""

import errno
import os
import select
import socket
import time
from collections.abc import Mapping

from pmuctl.value import value

RECEIVED_AT_ONCE = 1000
"""Events that are read before they are answered: a storm of them is no reason to read on."""


def list_event_sources() -> list[str] | None:
    """The kernel names of the devices of subsystem event_source, sorted.

    No running udevd is needed. None where libudev cannot tell: pyudev or the library is missing
    or fails, or it lists nothing. Where /sys is not mounted as libudev likes it (containers,
    mount namespaces) it returns an empty list without an error, and a kernel with perf always
    has some event source.

    Only names are taken from it: libudev caches an attribute for the life of its device object,
    and asks for nested ones ("events/x") by name only.
    """
    try:
        # here, because it costs 20 to 30 ms and most commands do without
        import pyudev

        devices = pyudev.Context().list_devices(subsystem="event_source")
        # not sys_name, in which libudev writes '/' for the kernel's '!'
        return sorted(os.path.basename(device.sys_path) for device in devices) or None
    except (ImportError, OSError, AttributeError, UnicodeError):
        # Context() raises ImportError where it finds no libudev.so.1, ctypes raises OSError for
        # one that does not load and AttributeError for one without the functions
        return None


@value(kw_only=True)
class Uevent:
    """What the kernel tells of a device: `kvm` with `create` or `destroy`, or a CPU.

    Of a VM `tid` is the thread that called KVM_CREATE_VM, not always the process's first one, as
    numbered in the first pid namespace (kvm_uevent_notify_change(), virt/kvm/kvm_main.c).
    """

    device: str
    action: str
    tid: int | None = None


@value(kw_only=True)
class UeventBatch:
    """What was heard in a while; `is_lossy` tells that the kernel dropped some of it."""

    events: tuple[Uevent, ...] = ()
    is_lossy: bool = False


class NoUevents:
    """Waits, and hears nothing."""

    is_open = False

    def wait(self, seconds: float) -> UeventBatch:
        """Wait for so long, or until something is heard."""
        time.sleep(seconds)
        return UeventBatch()

    def close(self) -> None:
        """Hear nothing any more."""
        self.is_open = False


class UeventMonitor(NoUevents):
    """Hears, from the kernel itself, of VMs that are made and ended, and of CPUs.

    No udevd is needed. Raises OSError or ImportError where that cannot be: no netlink sockets in
    this sandbox, no libudev. In another network or user namespace the kernel tells nothing, which
    looks like a host where nothing happens.
    """

    is_open = True

    def __init__(self) -> None:
        import pyudev

        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in ("misc", "cpu"):
            self._monitor.filter_by(subsystem)
        self._monitor.start()
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))

    def wait(self, seconds: float) -> UeventBatch:
        """Wait for so long, or until something is heard; what is there at once is one answer."""
        until = time.monotonic() + seconds
        poller = select.poll()
        if self.is_open:
            poller.register(self._monitor.fileno(), select.POLLIN)
        while (left := until - time.monotonic()) > 0:
            poller.poll(left * 1000)
            heard = self._receive() if self.is_open else UeventBatch()
            if heard.events or heard.is_lossy:
                return heard
        return UeventBatch()

    def close(self) -> None:
        """Hear nothing any more."""
        self.is_open = False
        self._socket.close()

    def _receive(self) -> UeventBatch:
        events: list[Uevent] = []
        is_lossy = False
        for _ in range(RECEIVED_AT_ONCE):
            try:
                # pyudev does not look where poll(2) tells of an error, so it is taken away first
                if number := self._take_error():
                    raise OSError(number, os.strerror(number))
                device = self._monitor.poll(0)
            except OSError as error:
                is_lossy = True
                if (error.errno or self._take_error()) == errno.ENOBUFS:
                    continue
                self.close()
                break
            if device is None:
                break
            if its := _uevent(device.sys_name, device.action, dict(device.properties)):
                events.append(its)
        return UeventBatch(events=tuple(events), is_lossy=is_lossy)

    def _take_error(self) -> int:
        """What is wrong with the socket, 0 for nothing: ENOBUFS where the kernel dropped events.

        Reading it clears it (socket(7), SO_ERROR); until then every poll(2) fails.
        """
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _uevent(name: str, action: str | None, properties: Mapping[str, str]) -> Uevent | None:
    """An event that is about a VM or about a CPU that comes or goes; None for any other."""
    if name == "kvm":
        event, pid = properties.get("EVENT"), properties.get("PID", "")
        if event in ("create", "destroy"):
            tid = int(pid) if pid.isascii() and pid.isdigit() and len(pid) <= 10 else None
            return Uevent(device=name, action=event, tid=tid)
    elif action in ("online", "offline") and name.startswith("cpu"):
        return Uevent(device=name, action=action)
    return None


def open_uevents() -> NoUevents:
    """The kernel's events, or an ear that hears nothing where they cannot be had."""
    try:
        return UeventMonitor()
    except (ImportError, OSError, AttributeError, UnicodeError):
        return NoUevents()
