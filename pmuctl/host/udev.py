# SPDX-License-Identifier: Apache-2.0
"""The one importer of pyudev: what libudev knows of the perf event sources of this machine."""

import os.path


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
