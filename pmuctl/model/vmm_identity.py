# SPDX-License-Identifier: Apache-2.0
"""What VMMs are called, and what their command lines and threads tell of their VMs.

All of it is a process's own word for itself: good for names on a screen, never for trust.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from pmuctl.model.vm_ref import UUID
from pmuctl.value import value

NAME_MAX = 255
"""Characters of a name that is shown; QEMU and others set no limit of their own."""

VCPU_THREAD = re.compile(r"(?:kvm-vcpu-|crosvm_vcpu|vcpu|fc_vcpu |CPU )([0-9]{1,9})(?:/KVM)?")
"""What VMMs call the thread of a vCPU: kvmtool, crosvm, cloud-hypervisor, firecracker, QEMU."""

_BLANKS = " \u115f\u1160\u2800\u3164\uffa0"
"""What counts as printable, and is not seen: besides the space, letters that are blank."""
_SINGLE_COMMA = re.compile(r"(?<!,),(?!,)")


class VmmKind(StrEnum):
    """A VMM that pmuctl knows something of."""

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
"""Names of programs; a thread's name has at most 15 bytes of one (TASK_COMM_LEN)."""


@value(kw_only=True)
class VmmIdentity:
    """What a process says it is; all None where it is no VMM that is known.

    `monitors` are the paths of the sockets at which QEMU serves QMP. `has_vpmu` is False where
    its options rule a PMU out, True where they ask for one, None where they leave it open.
    `sets_pmu` tells that the VMM chooses the PMU itself, as kvmtool does.
    """

    kind: VmmKind | None = None
    name: str | None = None
    uuid: str | None = None
    monitors: tuple[str, ...] = ()
    has_vpmu: bool | None = None
    sets_pmu: bool = False


def vcpu_of_thread(comm: str) -> int | None:
    """The number of the vCPU whose thread has this name, None where it is no such name."""
    match = VCPU_THREAD.fullmatch(comm)
    return int(match[1]) if match else None


def is_pmuctl(argv: Sequence[str], comm: str) -> bool:
    """Whether a process calls itself pmuctl: its VMs are the scratch VMs of its probes."""
    program = _basename(argv[0]) if argv else comm
    if program.startswith("python"):
        return any(_basename(word) == "pmuctl" for word in argv[1:6])
    return program == "pmuctl"


def identify(argv: Sequence[str], comm: str) -> VmmIdentity:
    """What a process's command line, or else the name of its first thread, tells of it."""
    program = _basename(argv[0]) if argv else comm
    kind = next((its for form, its in _PROGRAMS if re.fullmatch(form, program)), None)
    match kind:
        case VmmKind.QEMU:
            return _identify_qemu(argv)
        case VmmKind.KVMTOOL:
            has_pmu = "--pmu" in argv or "--pm" in argv
            name = _value(argv, "--name", "-n")
            return VmmIdentity(kind=kind, name=vm_name(name), has_vpmu=has_pmu, sets_pmu=has_pmu)
        case VmmKind.CROSVM:
            has_vpmu = False if "--no-pmu" in argv else None
            return VmmIdentity(kind=kind, name=vm_name(_value(argv, "--name")), has_vpmu=has_vpmu)
        case VmmKind.CLOUD_HYPERVISOR:
            platform = _options(_value(argv, "--platform") or "")
            return VmmIdentity(kind=kind, uuid=vm_uuid(platform.get("uuid")))
        case VmmKind.FIRECRACKER:
            # it refuses the vCPU feature (UnsupportedPmuV3)
            return VmmIdentity(kind=kind, name=vm_name(_value(argv, "--id")), has_vpmu=False)
    return VmmIdentity()


def _identify_qemu(argv: Sequence[str]) -> VmmIdentity:
    name = uuid = None
    has_vpmu: bool | None = None
    for option, word in _qemu_options(argv):
        if option == "name":
            name = _options(word, implied="guest").get("guest", name)
        elif option == "uuid":
            uuid = word
        elif option == "cpu":
            pmu = _options(word, implied="model").get("pmu")
            has_vpmu = None if pmu is None else pmu in ("on", "yes", "true", "y")
    return VmmIdentity(
        kind=VmmKind.QEMU,
        name=vm_name(name),
        uuid=vm_uuid(uuid),
        monitors=tuple(_qmp_sockets(argv)),
        has_vpmu=has_vpmu,
    )


def _qmp_sockets(argv: Sequence[str]) -> Iterator[str]:
    """Paths at which QEMU itself listens for QMP: `-qmp`, or a `-chardev` with a `-mon`."""
    chardevs: dict[str, str] = {}
    monitors: set[str] = set()
    for option, word in _qemu_options(argv):
        if option in ("qmp", "qmp-pretty"):
            kind, colon, rest = word.partition(":")
            its = _options(rest, implied="path")
            if colon and kind == "unix" and _serves(its):
                yield its["path"]
            elif colon and kind == "chardev":
                monitors.add(rest)
        elif option == "chardev":
            its = _options(word, implied="backend")
            if its.get("backend") == "socket" and _serves(its):
                chardevs[its.get("id", "")] = its["path"]
        elif option == "mon":
            its = _options(word, implied="chardev")
            if its.get("mode") == "control":
                monitors.add(its.get("chardev", ""))
    yield from (path for name, path in chardevs.items() if name in monitors)


def _serves(options: Mapping[str, str]) -> bool:
    """Whether it is a named socket that QEMU listens at; others it connects to."""
    return (
        bool(options.get("path"))
        and "\0" not in options["path"]
        and options.get("server") in ("on", "yes", "true", "y")
        and options.get("abstract", "off") in ("off", "no", "false", "n")
    )


def _qemu_options(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Options with the word that follows; QEMU takes one dash or two."""
    for option, word in zip(argv[1:], [*argv[2:], ""], strict=False):
        if option.startswith("-"):
            yield option.removeprefix("-").removeprefix("-"), word


def _options(text: str, *, implied: str = "") -> dict[str, str]:
    """QEMU's `key=value,...` (qemu_opts_parse()): `,,` is a comma, a bare word is "on"."""
    found: dict[str, str] = {}
    for number, part in enumerate(_SINGLE_COMMA.split(text)):
        key, equals, value = part.replace(",,", ",").partition("=")
        if equals:
            found[key] = value
        elif number == 0 and implied:
            found[implied] = key
        elif key:
            found[key] = "on"
    return found


def _value(argv: Sequence[str], *names: str) -> str | None:
    """The value of a long or a short option: `--name X`, `--name=X`, `-n X`."""
    for word, following in zip(argv[1:], [*argv[2:], None], strict=False):
        if word in names:
            return following
        name, equals, rest = word.partition("=")
        if equals and name in names and name.startswith("--"):
            return rest
    return None


def vm_name(text: str | None) -> str | None:
    """A name that can stand beside others: it can be seen, and looks like no pid/N, uuid/... or
    option."""
    if not text or len(text) > NAME_MAX or "/" in text or text.startswith("-"):
        return None
    return None if all(map(_is_blank, text)) else text


def _is_blank(char: str) -> bool:
    return not char.isprintable() or char in _BLANKS


def vm_uuid(text: str | None) -> str | None:
    """A UUID in small letters; None for what is none."""
    return text.lower() if text and UUID.fullmatch(text) else None


def _basename(path: str) -> str:
    return path.rpartition("/")[2]
