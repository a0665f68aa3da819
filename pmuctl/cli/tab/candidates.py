# SPDX-License-Identifier: Apache-2.0
"""`pmuctl __complete`: candidates that the completion scripts cannot find by themselves.

A shell waits for this with a half-typed line, so it imports next to nothing, reads sysfs itself,
and prints nothing if anything is wrong.
"""

import os
import sys

DEVICES = "/sys/bus/event_source/devices"
"""As `PATH_EVENT_SOURCE` in pmuctl.host.sysfs."""
PATH_RUN = "/run/pmuctl"
PATH_USERS = "/run/user"
"""These two as in pmuctl.host.runtime_dirs."""

QUERY_SECONDS = 0.1
"""For the whole reply of a VM; a VM that takes longer is taken to have no PMU."""
REPLY_MAX = 1 << 20
"""Bytes of a reply."""
CODE_MAX = 256
"""Bytes read from events/NAME and cpus, which are one short line."""
NAMES_MAX = 4096
"""Names read of a directory: a PMU has a few hundred events."""
OFFERED_MAX = 4096
"""CPU lists and CPUs offered, and those of one more PMU."""
CPUS_MAX = 64
"""The longest range of which each CPU is offered, too."""

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def run() -> None:
    """Print the candidates for argv, nothing if that fails, and end the process."""
    try:
        kinds = {
            "events": complete_events,
            "cpus": complete_cpus,
            "pmus": complete_pmus,
            "vms": complete_vms,
        }
        lines = kinds[sys.argv[2]](sys.argv[3:])
        sys.stdout.write("".join(f"{name}\t{what}\n" for name, what in lines))
        sys.stdout.flush()
    except BaseException:
        pass  # a traceback must not appear in a half-typed line
    os._exit(0)


def complete_events(words: list[str]) -> list[tuple[str, str]]:
    """Return the events that `vm set` accepts, each with its code from sysfs.

    `words` are --socket=PATH, the VM, and the settings so far. The events are those of the PMU in
    the settings, else of the VM's PMU, else of all CPU PMUs.
    """
    socket, vm, *settings = words
    pmus = _pmus_of(vm, socket, settings)
    events = {name: pmu for pmu in pmus for name in _list_names(f"{DEVICES}/{pmu}/events")}
    return [(name, _read_code(f"{DEVICES}/{events[name]}/events/{name}")) for name in events]


def complete_cpus(words: list[str]) -> list[tuple[str, str]]:
    """Return CPU lists inside the VM's PMU, each with its PMU.

    `words` are as in `complete_events`. If they name no VM, or its PMU is not known, the lists of
    all CPU PMUs are returned. The value of the setting `affinity` can also be auto or none. If
    the first word is --sysroot=DIR, the PMUs are those of that host.
    """
    if words[0].startswith("--sysroot="):
        devices = words[0].removeprefix("--sysroot=") + DEVICES
        return _list_cpus(devices, _list_names(devices))
    socket, vm, *settings = [*words, ""][: max(len(words), 2)]
    found = [("auto", "the CPUs of its PMU"), ("none", "do not change")] if settings else []
    return found + _list_cpus(DEVICES, _pmus_of(vm, socket, settings))


def _list_cpus(devices: str, pmus: list[str]) -> list[tuple[str, str]]:
    """Return pmu/NAME, the CPU list and each CPU of these PMUs in a folder of event sources."""
    found: dict[str, str] = {}
    for name in pmus:
        if len(found) > OFFERED_MAX:
            break
        cpus = _read_line(f"{devices}/{name}/cpus")
        if not cpus or set(cpus) - set("0123456789,-"):
            continue
        if any(len(number) > 5 for number in cpus.replace("-", ",").split(",")):
            continue
        found |= {f"pmu/{name}": f"CPUs {cpus}", cpus: name}
        for part in cpus.split(","):
            first, dash, last = part.partition("-")
            if dash and first.isdigit() and last.isdigit() and int(last) - int(first) < CPUS_MAX:
                found |= {str(cpu): name for cpu in range(int(first), int(last) + 1)}
    return list(found.items())


def complete_pmus(words: list[str]) -> list[tuple[str, str]]:
    """Return each `core/MODEL` or `cpus/LIST` that selects PMUs of a host, with these.

    `words` are --sysroot=DIR, and core or cpus. Names of core models are in lower case and come
    with their short forms; one without a name has its MIDR. Rare, so it may import more.
    """
    if words[1] == "cpus":
        found = complete_cpus([words[0]])
        return [(f"cpus/{cpus}", name) for cpus, name in found if not cpus.startswith("pmu/")]
    from pathlib import Path

    from pmuctl.host.pmus import scan_pmus
    from pmuctl.host.sysfs import PATH_EVENT_SOURCE, Sysfs
    from pmuctl.model.core_name import short_names
    from pmuctl.model.pmu_selector import match_pmus

    sysfs = Sysfs(Path(words[0].removeprefix("--sysroot=") or "/"))
    pmus = scan_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))
    names: dict[str, None] = {}
    for core in dict.fromkeys(core for pmu in pmus for core in pmu.cores):
        names |= dict.fromkeys([str(core).lower(), *short_names(core)])
    selected = ((f"core/{name}", match_pmus(f"core/{name}", pmus)) for name in names)
    return [
        (text, found[0].name if len(found) == 1 and is_name(found[0].name) else "PMUs")
        for text, found in selected
        if found
    ]


def complete_vms(words: list[str]) -> list[tuple[str, str]]:
    """Return the names of the VMs of a host, or their `pid/PID` or `uuid/UUID`, each with its VMM.

    `words` are --sysroot=DIR and the beginning of the word to complete. VMs are those that
    processes show: no control socket is asked. Rare, so it may import more.
    """
    from pathlib import Path

    from pmuctl.host.host import Host
    from pmuctl.manage.inventory.inventory import Inventory
    from pmuctl.manage.inventory.processes import scan_processes
    from pmuctl.manage.inventory.session import Session

    root, begun = words[0].removeprefix("--sysroot="), words[1]
    host = Host(environ=os.environ, uid=os.getuid())
    session = Session(host=host.captured(Path(root)) if root else host, deadline=QUERY_SECONDS)
    its: list[tuple[str | None, int | None, str | None, str | None]]
    if root:
        vms = Inventory(session).vms
        its = [(vm.name, vm.process.pid if vm.process else None, vm.uuid, vm.vmm) for vm in vms]
    else:
        scanned = scan_processes(session).processes
        its = [
            (its.identity.name, its.pid, its.identity.uuid, its.identity.kind) for its in scanned
        ]
    found: dict[str, str] = {}
    for name, pid, uuid, vmm in its:
        names = [name] if name and is_name(name) else []
        if pid is not None and begun[:4] and "pid/".startswith(begun[:4]):
            names.append(f"pid/{pid}")
        if uuid is not None and begun[:5] and "uuid/".startswith(begun[:5]):
            names.append(f"uuid/{uuid}")
        found |= dict.fromkeys(names, str(vmm) if vmm and is_name(vmm) else "a VM")
    return list(found.items())


def _pmus_of(vm: str, socket: str, settings: list[str]) -> list[str]:
    """Return the PMU in the settings, else that of the VM, else all CPU PMUs."""
    pmus = [name for name in _list_names(DEVICES) if os.path.exists(f"{DEVICES}/{name}/cpus")]
    chosen = _chosen_pmu(settings)
    if chosen is not None:
        return [chosen] if chosen in pmus else _select_pmu(chosen)
    pmu = _query_pmu(_open_socket(vm, socket.removeprefix("--socket="))) if len(pmus) > 1 else None
    return [pmu] if pmu in pmus else pmus


def is_name(text: str) -> bool:
    """Return whether a name has no character that is special to a shell or a terminal."""
    return text[:1] in LETTERS and len(text) <= 64 and not set(text) - LETTERS - set("_.-")


def _list_names(directory: str) -> list[str]:
    names: list[str] = []
    try:
        with os.scandir(directory) as files:
            for file in files:
                if is_name(file.name):
                    names.append(file.name)
                if len(names) == NAMES_MAX:
                    break
    except OSError:
        pass
    return sorted(names)


def _read_code(path: str) -> str:
    """Return the text of an event file ("event=0x0011"), empty if it is not one plain word."""
    text = _read_line(path)
    return text if not set(text) - LETTERS - set("=,_") else ""


def _read_line(path: str) -> str:
    """Return the short text in a file, empty if it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(CODE_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _chosen_pmu(settings: list[str]) -> str | None:
    """Return the value of `pmu` in the settings before `filter`, None if there is none."""
    for key, value in zip(settings[::2], settings[1::2], strict=False):
        if key == "filter":
            break
        if key == "pmu":
            return value
    return None


def _select_pmu(text: str) -> list[str]:
    """Return the PMU of a glob, core/MODEL or cpus/LIST; rare, so it may import more."""
    from pmuctl.host.pmus import scan_pmus
    from pmuctl.host.sysfs import PATH_EVENT_SOURCE, Sysfs
    from pmuctl.model.pmu_selector import select_pmu

    sysfs = Sysfs()
    return [select_pmu(text, scan_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))).name]


def _open_socket(vm: str, named: str) -> tuple[int, int | None] | None:
    """Return an O_PATH descriptor of a VM's control socket, and the user who is to listen there.

    The user is None if that may be anyone: in root's directory, or at the path that is `named`.
    """
    from pmuctl.control.runtime.socket_files import SUFFIX, find_socket_dirs, open_socket_file

    if named:
        return open_socket_file(named, None), None
    if not is_name(vm):
        return None
    directories, _ = find_socket_dirs(os.environ, os.geteuid(), run=PATH_RUN, users=PATH_USERS)
    for directory, owner in directories:
        path = f"{directory}/{vm}{SUFFIX}"
        try:
            if not os.path.islink(path):
                return open_socket_file(path, owner), owner
        except OSError:
            continue
    return None


def _query_pmu(found: tuple[int, int | None] | None) -> str | None:
    """Return the PMU that a VM reports as set, None if it reports none or does not answer.

    Nothing is sent to another user's process than the one who is to listen there.
    """
    if found is None:
        return None
    fd, owner = found
    import json
    import socket
    import struct
    import time

    until = time.monotonic() + QUERY_SECONDS
    with socket.socket(socket.AF_UNIX) as peer:

        def wait_no_longer() -> None:
            peer.settimeout(max(until - time.monotonic(), 0.001))

        try:
            wait_no_longer()
            peer.connect(f"/proc/self/fd/{fd}")
            _, uid, _ = struct.unpack(
                "iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            )
            if owner not in (None, uid):
                return None
            wait_no_longer()
            peer.sendall(b'{"execute":"qmp_capabilities"}\n{"execute":"query-pmu","id":"pmu"}\n')
            data = b""
            while len(data) <= REPLY_MAX and time.monotonic() < until:
                wait_no_longer()
                more = peer.recv(1 << 16)
                if not more:
                    break
                *lines, data = (data + more).split(b"\n")
                for line in lines:
                    answer = json.loads(line)
                    if "id" in answer:
                        return str(answer["return"]["pmu"]["name"])
        except (OSError, ValueError, TypeError, LookupError, RecursionError):
            pass
    return None
