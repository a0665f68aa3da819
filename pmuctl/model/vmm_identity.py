# SPDX-License-Identifier: Apache-2.0
"""Identity of a VMM, from its program name, its command line and the names of its threads.

All of it is what a process says of itself: good for display, never for trust.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from pmuctl.model.vm_ref import UUID
from pmuctl.value import value

NAME_MAX = 255
"""The most characters of a VM's name; QEMU and others set no limit of their own."""

VCPU_THREAD = re.compile(r"(?:kvm-vcpu-|crosvm_vcpu|vcpu|fc_vcpu |CPU )([0-9]{1,9})(?:/KVM)?")
"""The names of vCPU threads in kvmtool, crosvm, cloud-hypervisor, firecracker and QEMU."""

_BLANKS = " \u115f\u1160\u2800\u3164\uffa0"
"""Characters that count as printable but are invisible: the space, and blank letters."""
_SINGLE_COMMA = re.compile(r"(?<!,),(?!,)")


class VmmKind(StrEnum):
    """A VMM that pmuctl knows."""

    QEMU = "qemu"
    KVMTOOL = "kvmtool"
    CROSVM = "crosvm"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    FIRECRACKER = "firecracker"


_PROGRAMS: Sequence[tuple[str, VmmKind]] = (
    (r"qemu-system-.+|qemu-kvm|kvm|kvm-spice", VmmKind.QEMU),
    (r"lkvm|lkvm-static|kvmtool", VmmKind.KVMTOOL),
    (r"crosvm", VmmKind.CROSVM),
    (r"cloud-hypervisor|cloud-hyperviso", VmmKind.CLOUD_HYPERVISOR),
    (r"firecracker", VmmKind.FIRECRACKER),
)
"""Program names; the name of a thread has at most 15 bytes of one (TASK_COMM_LEN)."""


@value(kw_only=True)
class VmmIdentity:
    """What a process says it is; `kind`, `name` and `uuid` are None if it is no known VMM.

    `monitors` are the paths of the sockets at which QEMU serves QMP. `has_vpmu` is False if the
    VMM's options rule a PMU out, True if they ask for one, None if they leave it open. `sets_pmu`
    is True if the VMM chooses the PMU itself, as kvmtool does.
    """

    kind: VmmKind | None = None
    name: str | None = None
    uuid: str | None = None
    monitors: tuple[str, ...] = ()
    has_vpmu: bool | None = None
    sets_pmu: bool = False


def vcpu_of_thread(comm: str) -> int | None:
    """Return the number of the vCPU whose thread has this name; None if it is no such name."""
    match = VCPU_THREAD.fullmatch(comm)
    return int(match[1]) if match else None


def is_pmuctl(argv: Sequence[str], comm: str) -> bool:
    """Return whether a process calls itself pmuctl: its VMs are the scratch VMs of its probes."""
    program = _strip_folder(argv[0]) if argv else comm
    if program.startswith("python"):
        return any(_strip_folder(word) == "pmuctl" for word in argv[1:6])
    return program == "pmuctl"


def identify(argv: Sequence[str], comm: str) -> VmmIdentity:
    """Identify a VMM by its command line, or if that is empty by the name of its first thread."""
    program = _strip_folder(argv[0]) if argv else comm
    kind = next((kind for form, kind in _PROGRAMS if re.fullmatch(form, program)), None)
    match kind:
        case VmmKind.QEMU:
            return _identify_qemu(argv)
        case VmmKind.KVMTOOL:
            has_pmu = "--pmu" in argv or "--pm" in argv
            name = _read_option(argv, "--name", "-n")
            return VmmIdentity(kind=kind, name=vm_name(name), has_vpmu=has_pmu, sets_pmu=has_pmu)
        case VmmKind.CROSVM:
            has_vpmu = False if "--no-pmu" in argv else None
            name = _read_option(argv, "--name")
            return VmmIdentity(kind=kind, name=vm_name(name), has_vpmu=has_vpmu)
        case VmmKind.CLOUD_HYPERVISOR:
            platform = _parse_options(_read_option(argv, "--platform") or "")
            return VmmIdentity(kind=kind, uuid=vm_uuid(platform.get("uuid")))
        case VmmKind.FIRECRACKER:
            # firecracker refuses the vCPU feature (UnsupportedPmuV3)
            return VmmIdentity(kind=kind, name=vm_name(_read_option(argv, "--id")), has_vpmu=False)
    return VmmIdentity()


def _identify_qemu(argv: Sequence[str]) -> VmmIdentity:
    name = uuid = None
    has_vpmu: bool | None = None
    for option, word in _iter_qemu_options(argv):
        if option == "name":
            name = _parse_options(word, implied="guest").get("guest", name)
        elif option == "uuid":
            uuid = word
        elif option == "cpu":
            pmu = _parse_options(word, implied="model").get("pmu")
            has_vpmu = None if pmu is None else pmu in ("on", "yes", "true", "y")
    return VmmIdentity(
        kind=VmmKind.QEMU,
        name=vm_name(name),
        uuid=vm_uuid(uuid),
        monitors=tuple(_iter_qmp_sockets(argv)),
        has_vpmu=has_vpmu,
    )


def _iter_qmp_sockets(argv: Sequence[str]) -> Iterator[str]:
    """Yield the paths at which QEMU itself serves QMP: `-qmp`, or a `-chardev` with a `-mon`."""
    chardevs: dict[str, str] = {}
    monitors: set[str] = set()
    for option, word in _iter_qemu_options(argv):
        if option in ("qmp", "qmp-pretty"):
            kind, colon, rest = word.partition(":")
            options = _parse_options(rest, implied="path")
            if colon and kind == "unix" and _is_server(options):
                yield options["path"]
            elif colon and kind == "chardev":
                monitors.add(rest)
        elif option == "chardev":
            options = _parse_options(word, implied="backend")
            if options.get("backend") == "socket" and _is_server(options):
                chardevs[options.get("id", "")] = options["path"]
        elif option == "mon":
            options = _parse_options(word, implied="chardev")
            if options.get("mode") == "control":
                monitors.add(options.get("chardev", ""))
    yield from (path for name, path in chardevs.items() if name in monitors)


def _is_server(options: Mapping[str, str]) -> bool:
    """Return whether QEMU listens at this named socket; to others it connects."""
    return (
        bool(options.get("path"))
        and "\0" not in options["path"]
        and options.get("server") in ("on", "yes", "true", "y")
        and options.get("abstract", "off") in ("off", "no", "false", "n")
    )


def _iter_qemu_options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield each option, with one dash or two, and the word that follows it."""
    for option, word in zip(argv[1:], [*argv[2:], ""], strict=False):
        if option.startswith("-"):
            yield option.removeprefix("-").removeprefix("-"), word


def _parse_options(text: str, *, implied: str = "") -> dict[str, str]:
    """Parse QEMU's `key=value,...` (qemu_opts_parse()): `,,` is a comma, a bare word is "on".

    A bare first word is the value of the key `implied`, if that is given.
    """
    found: dict[str, str] = {}
    for number, part in enumerate(_SINGLE_COMMA.split(text)):
        key, equals, setting = part.replace(",,", ",").partition("=")
        if equals:
            found[key] = setting
        elif number == 0 and implied:
            found[implied] = key
        elif key:
            found[key] = "on"
    return found


def _read_option(argv: Sequence[str], *names: str) -> str | None:
    """Return the value of a long or short option: `--name X`, `--name=X`, `-n X`; None without."""
    for word, following in zip(argv[1:], [*argv[2:], None], strict=False):
        if word in names:
            return following
        name, equals, rest = word.partition("=")
        if equals and name in names and name.startswith("--"):
            return rest
    return None


def vm_name(text: str | None) -> str | None:
    """Return the text if it can be the name of a VM, else None.

    Such a name is visible, and looks like no pid/N, uuid/... or option.
    """
    if not text or len(text) > NAME_MAX or "/" in text or text.startswith("-"):
        return None
    return None if all(map(_is_blank, text)) else text


def _is_blank(char: str) -> bool:
    return not char.isprintable() or char in _BLANKS


def vm_uuid(text: str | None) -> str | None:
    """Return a UUID in lower case; None if the text is no UUID."""
    return text.lower() if text and UUID.fullmatch(text) else None


def _strip_folder(path: str) -> str:
    return path.rpartition("/")[2]
