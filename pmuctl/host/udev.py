# SPDX-License-Identifier: Apache-2.0
"""Perf event sources and kernel uevents of this machine; the only module that imports pyudev."""

import errno
import os
import select
import time
from collections.abc import Mapping

from pmuctl.value import value

RECEIVED_AT_ONCE = 1000
"""Events read in one batch at most: in a storm of events, reading would not end."""


def list_event_sources() -> list[str] | None:
    """Return the kernel names of the devices of subsystem event_source, sorted.

    No running udevd is needed. Return None if pyudev or libudev is missing or fails, or lists
    nothing: if /sys is not mounted as libudev expects (containers, mount namespaces), it returns
    an empty list without an error, and a kernel with perf always has some event source.

    Only names are taken from libudev: it caches an attribute for the life of its device object,
    and looks up nested ones ("events/x") by name only.
    """
    try:
        # the import costs 20 to 30 ms, and most commands do without
        import pyudev

        devices = pyudev.Context().list_devices(subsystem="event_source")
        # sys_name would not do: libudev writes '/' in it for the kernel's '!'
        return sorted(os.path.basename(device.sys_path) for device in devices) or None
    except (ImportError, OSError, AttributeError, UnicodeError):
        # Context() raises ImportError if it finds no libudev.so.1, ctypes raises OSError for a
        # library that does not load and AttributeError for one without the functions
        return None


@value(kw_only=True)
class Uevent:
    """A kernel event of a device: `kvm` with action `create` or `destroy`, or a CPU.

    For a VM `tid` is the thread that called KVM_CREATE_VM, not always the process's first one, as
    numbered in the first pid namespace (kvm_uevent_notify_change(), virt/kvm/kvm_main.c).
    """

    device: str
    action: str
    tid: int | None = None


@value(kw_only=True)
class UeventBatch:
    """The events received in one wait; `is_lossy` if the kernel has dropped some of them."""

    events: tuple[Uevent, ...] = ()
    is_lossy: bool = False


class NoUevents:
    """A monitor that receives no events, for hosts that have none to offer."""

    is_open = False

    def wait(self, seconds: float) -> UeventBatch:
        """Wait for `seconds`; return an empty batch."""
        time.sleep(seconds)
        return UeventBatch()

    def close(self) -> None:
        """Stop receiving events."""
        self.is_open = False


class UeventMonitor(NoUevents):
    """A monitor of the kernel's own events of VMs created and destroyed, and of CPUs.

    No udevd is needed. Raises OSError or ImportError if it cannot be opened: no netlink sockets
    in this sandbox, no libudev. In another network or user namespace the kernel sends nothing,
    which looks like a host where nothing happens.
    """

    is_open = True

    def __init__(self) -> None:
        import socket  # it takes longer than all else that `pmu list` imports for this module

        import pyudev

        self._monitor = pyudev.Monitor.from_netlink(pyudev.Context(), source="kernel")
        for subsystem in ("misc", "cpu"):
            self._monitor.filter_by(subsystem)
        self._monitor.start()
        self._socket = socket.socket(fileno=os.dup(self._monitor.fileno()))

    def wait(self, seconds: float) -> UeventBatch:
        """Wait until events arrive, for `seconds` at most; return those pending in one batch."""
        deadline = time.monotonic() + seconds
        poller = select.poll()
        if self.is_open:
            poller.register(self._monitor.fileno(), select.POLLIN)
        while (left := deadline - time.monotonic()) > 0:
            poller.poll(left * 1000)
            batch = self._receive_batch() if self.is_open else UeventBatch()
            if batch.events or batch.is_lossy:
                return batch
        return UeventBatch()

    def close(self) -> None:
        """Stop receiving events, and close the socket."""
        self.is_open = False
        self._socket.close()

    def _receive_batch(self) -> UeventBatch:
        events: list[Uevent] = []
        is_lossy = False
        for _ in range(RECEIVED_AT_ONCE):
            try:
                # pyudev does not look at errors that poll(2) reports, so the error is taken first
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
            if event := _parse_uevent(device.sys_name, device.action, dict(device.properties)):
                events.append(event)
        return UeventBatch(events=tuple(events), is_lossy=is_lossy)

    def _take_error(self) -> int:
        """Return and clear the socket's error: 0 if none, ENOBUFS if the kernel dropped events.

        Until the error has been read (socket(7), SO_ERROR), every poll(2) reports it.
        """
        import socket

        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _parse_uevent(name: str, action: str | None, properties: Mapping[str, str]) -> Uevent | None:
    """Return the event of a VM, or of a CPU going online or offline; None for any other."""
    if name == "kvm":
        event, pid = properties.get("EVENT"), properties.get("PID", "")
        if event in ("create", "destroy"):
            tid = int(pid) if pid.isascii() and pid.isdigit() and len(pid) <= 10 else None
            return Uevent(device=name, action=event, tid=tid)
    elif action in ("online", "offline") and name.startswith("cpu"):
        return Uevent(device=name, action=action)
    return None


def open_uevents() -> NoUevents:
    """Open a monitor of the kernel's events; return one that receives none if that fails."""
    try:
        return UeventMonitor()
    except (ImportError, OSError, AttributeError, UnicodeError):
        return NoUevents()
