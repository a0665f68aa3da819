# SPDX-License-Identifier: Apache-2.0
"""`pmuctl __complete`: what the completion scripts cannot find out by themselves.

A shell waits for this with a half-typed line, so it imports next to nothing, reads sysfs itself,
and says nothing at all where anything is wrong.
"""

import os
import stat
import sys

DEVICES = "/sys/bus/event_source/devices"
"""As `PATH_EVENT_SOURCE` in pmuctl.host.sysfs."""
PATH_RUN = "/run/pmuctl"
PATH_USERS = "/run/user"

ASKING_SECONDS = 0.1
"""For a VM's whole answer; one that needs longer is taken to have no PMU."""
ANSWER_MAX = 1 << 20
CODE_MAX = 256
"""Bytes read of events/NAME and of cpus: what they say is one short line."""
CPUS_MAX = 64
"""CPUs of a range that are offered one by one."""

LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


def run() -> None:
    """Answer the question in argv, silently with nothing where that fails; ends the process."""
    try:
        kinds = {"events": complete_events, "cpus": complete_cpus}
        lines = kinds[sys.argv[2]](sys.argv[3:])
        sys.stdout.write("".join(f"{name}\t{what}\n" for name, what in lines))
        sys.stdout.flush()
    except BaseException:
        pass  # nobody wants to read a traceback in a half-typed line
    os._exit(0)


def complete_events(words: list[str]) -> list[tuple[str, str]]:
    """The events that `vm set` can name, each with what sysfs says of it.

    `words` are --socket=PATH, the VM, and the settings so far. The events are those of the PMU
    that is set, else of the one that the VM has, else of all CPU PMUs.
    """
    socket, vm, *settings = words
    pmus = _pmus_of(vm, socket, settings)
    events = {name: pmu for pmu in pmus for name in _names(f"{DEVICES}/{pmu}/events")}
    return [(name, _read_code(f"{DEVICES}/{events[name]}/events/{name}")) for name in events]


def complete_cpus(words: list[str]) -> list[tuple[str, str]]:
    """The CPU lists that a VM's vCPUs can be put on, each with its PMU: those inside its PMU.

    `words` are as those of `complete_events`; where there is no VM among them, or its PMU is not
    known, they are those of all CPU PMUs. As the value of a setting it can be a word, too.
    """
    socket, vm, *settings = [*words, ""][: max(len(words), 2)]
    found = [("auto", "the CPUs of its PMU"), ("none", "left alone")] if settings else []
    for name in _pmus_of(vm, socket, settings):
        cpus = _read_line(f"{DEVICES}/{name}/cpus")
        if not cpus or set(cpus) - set("0123456789,-"):
            continue
        found += [(f"pmu/{name}", f"CPUs {cpus}"), (cpus, name)]
        for part in cpus.split(","):
            first, dash, last = part.partition("-")
            if dash and first.isdigit() and last.isdigit() and int(last) - int(first) < CPUS_MAX:
                found += [(str(cpu), name) for cpu in range(int(first), int(last) + 1)]
    return list(dict(found).items())


def _pmus_of(vm: str, socket: str, settings: list[str]) -> list[str]:
    """The PMU among the settings, else that of the VM, else all."""
    pmus = [name for name in _names(DEVICES) if os.path.exists(f"{DEVICES}/{name}/cpus")]
    chosen = _chosen_pmu(settings)
    if chosen is not None:
        return [chosen] if chosen in pmus else _select(chosen)
    pmu = _ask(_socket(vm, socket.removeprefix("--socket="))) if len(pmus) > 1 else None
    return [pmu] if pmu in pmus else pmus


def is_name(text: str) -> bool:
    """Whether nothing in a name can mean anything to a shell or a terminal."""
    return text[:1] in LETTERS and len(text) <= 64 and not set(text) - LETTERS - set("_.-")


def _names(directory: str) -> list[str]:
    try:
        return sorted(filter(is_name, os.listdir(directory)))
    except OSError:
        return []


def _read_code(path: str) -> str:
    """ "event=0x0011" as it stands there, empty where it is not one word of plain text."""
    text = _read_line(path)
    return text if not set(text) - LETTERS - set("=,_") else ""


def _read_line(path: str) -> str:
    """The short text in a regular file, empty where there is none."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(CODE_MAX).decode("ascii", "replace").strip()
    except OSError:
        return ""


def _chosen_pmu(settings: list[str]) -> str | None:
    """The value of `pmu` among the settings before `filter`."""
    for key, value in zip(settings[::2], settings[1::2], strict=False):
        if key == "filter":
            break
        if key == "pmu":
            return value
    return None


def _select(text: str) -> list[str]:
    """The PMU that a glob, core/MODEL or cpus/LIST stands for: rare, and worth the imports."""
    from pmuctl.host.pmus import scan_pmus
    from pmuctl.host.sysfs import PATH_EVENT_SOURCE, Sysfs
    from pmuctl.model.pmu_selector import select_pmu

    sysfs = Sysfs()
    return [select_pmu(text, scan_pmus(sysfs, sysfs.entries(PATH_EVENT_SOURCE))).name]


def _socket(vm: str, named: str) -> str | None:
    """The control socket of a VM, as `scan_sockets` in pmuctl.control.runtime.sockets finds it."""
    if named:
        return named
    if own := os.environ.get("PMUCTL_RUNTIME_DIR"):
        directories = [own]
    elif os.geteuid() == 0:
        users = [f"{PATH_USERS}/{uid}/pmuctl" for uid in _names(PATH_USERS)]
        directories = [PATH_RUN, *users]
    else:
        runtime = os.environ.get("XDG_RUNTIME_DIR")
        directories = [PATH_RUN, *([f"{runtime}/pmuctl"] if runtime else [])]
    paths = [f"{directory}/{vm}.sock" for directory in directories] if is_name(vm) else []
    return next((path for path in paths if _is_socket_of_its_directory(path)), None)


def _is_socket_of_its_directory(path: str) -> bool:
    """Whether it is a socket, no link, in a directory of the user whose runtime it is."""
    try:
        folder, its = os.lstat(os.path.dirname(path)), os.lstat(path)
    except OSError:
        return False
    user = path.removeprefix(f"{PATH_USERS}/").partition("/")[0]
    is_own = not path.startswith(PATH_USERS) or str(folder.st_uid) == user
    return is_own and stat.S_ISDIR(folder.st_mode) and stat.S_ISSOCK(its.st_mode)


def _ask(path: str | None) -> str | None:
    """The PMU that a VM says it was given, None where it has none or does not say."""
    if path is None:
        return None
    import json
    import socket
    import time

    until = time.monotonic() + ASKING_SECONDS
    with socket.socket(socket.AF_UNIX) as peer:

        def wait_no_longer() -> None:
            peer.settimeout(max(until - time.monotonic(), 0.001))

        try:
            wait_no_longer()
            peer.connect(path)
            wait_no_longer()
            peer.sendall(b'{"execute":"qmp_capabilities"}\n{"execute":"query-pmu","id":"pmu"}\n')
            data = b""
            while len(data) <= ANSWER_MAX and time.monotonic() < until:
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
