# SPDX-License-Identifier: Apache-2.0
"""Identity of a VMM, from its program name, its command line and the names of its threads.

All of it is what a process says of itself: good for display, never for trust.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum

from pmuctl.model.vm_ref import UUID
from pmuctl.model.vmm.dynamic_loader import skip_loader
from pmuctl.value import replace, value

NAME_MAX = 255
"""The most characters of a VM's name; QEMU and others set no limit of their own."""

COMM_MAX = 15
"""The most bytes of the name of a thread (TASK_COMM_LEN, include/linux/sched.h)."""

WRAPPERS_MAX = 4
"""The most wrappers of nixpkgs around a program."""

VCPU_THREAD = re.compile(
    r"(?:kvm-vcpu-|crosvm_vcpu|(?:fc_|db_)?vcpu[-_ ]?|CPU )([0-9]{1,5})(?:/KVM)?"
)
"""The names of vCPU threads: kvm-vcpu-N (kvmtool), crosvm_vcpuN, vcpuN (cloud-hypervisor), vcpu_N
(alioth), fc_vcpu N (Firecracker, libkrun), db_vcpuN (Dragonball), CPU N/KVM (QEMU, StratoVirt)."""

_BLANKS = " \u115f\u1160\u2800\u3164\uffa0"
"""Characters that count as printable but are invisible: the space, and blank letters."""
_OPTION = re.compile(r"((?:[^,]++|,,)*+)(?:,|\Z)")
"""A part of a list of options, up to a single comma: two commas are a comma of its text."""
_PRETTY_NAME = "microvm@"
"""Before the name of the VM, which microvm.nix puts in the place of the program name."""


class VmmKind(StrEnum):
    """A VMM that pmuctl knows."""

    QEMU = "qemu"
    KVMTOOL = "kvmtool"
    CROSVM = "crosvm"
    CLOUD_HYPERVISOR = "cloud-hypervisor"
    FIRECRACKER = "firecracker"
    STRATOVIRT = "stratovirt"
    DRAGONBALL = "dragonball"
    """Kata's own VMM, a part of its shim"""
    LIBKRUN = "libkrun"
    """a library: the VMM of muvm, krunvm, microsandbox and crun's krun"""
    ALIOTH = "alioth"


_PROGRAMS: Sequence[tuple[str, VmmKind]] = (
    (r"qemu-(?:.+-)?system-.+|qemu-(?:kvm|lite|spice|vanilla)(?:[-_.].*)?", VmmKind.QEMU),
    (r"(?:qemu|kvm)(?:[-_.]?v?[0-9].*)?|kvm-spice", VmmKind.QEMU),
    (r"(?:lkvm|kvmtool)(?:[-_.].*)?", VmmKind.KVMTOOL),
    (r"crosvm(?:[-_.].*)?", VmmKind.CROSVM),
    # the name of a thread is cut to COMM_MAX bytes, of which a dot before it takes one
    (r"cloud-hyperv.*", VmmKind.CLOUD_HYPERVISOR),
    (r"firecracker(?:[-_.].*)?", VmmKind.FIRECRACKER),
    (r"stratovirt(?:[-_.].*)?", VmmKind.STRATOVIRT),
    (r"containerd-shim-kata-v2.*|(?:dragonball|dbs-cli)(?:[-_.].*)?", VmmKind.DRAGONBALL),
    (r"(?:muvm|krunvm|krun|msb|msbrun|microsandbox)(?:[-_.].*)?", VmmKind.LIBKRUN),
    # krun_start_enter() of libkrun names the main thread
    (r"libkrun VM|VM:.+", VmmKind.LIBKRUN),
    (r"alioth(?:[-_.].*)?", VmmKind.ALIOTH),
)
"""Program names, also with a version, an architecture or `static` after them."""
_THREADS: Sequence[tuple[str, VmmKind]] = (
    (r"fc_api", VmmKind.FIRECRACKER),
    (r"CPU [0-9]+/KVM", VmmKind.QEMU),
    (r"kvm-vcpu-[0-9]+", VmmKind.KVMTOOL),
    (r"crosvm_vcpu[0-9]+", VmmKind.CROSVM),
    (r"db_vcpu[0-9]+", VmmKind.DRAGONBALL),
    (r"fc_vcpu ?[0-9]+", VmmKind.LIBKRUN),
)
"""Names of threads that one VMM gives; where two do, Firecracker's own before libkrun, which has
Firecracker's names, and QEMU before StratoVirt, which has QEMU's and its options."""
_KVMTOOL_ALIASES = ("vm", "kvm")
"""Other names of kvmtool: its Makefile's link, and what it was called at first."""
_KVMTOOL_STARTS = ("run", "sandbox")
"""The commands with which kvmtool makes a VM."""
_KRUN_TITLE = "[libcrun:krun]"
"""The start of the command line that crun gives itself when it becomes a VM (libkrun)."""
_WITHOUT_VPMU = (VmmKind.FIRECRACKER, VmmKind.LIBKRUN)
"""VMMs that ask KVM for no vPMU. Firecracker refuses the vCPU feature (UnsupportedPmuV3), libkrun
does not set it (configure_aarch64() in src/vmm/src/linux/vstate.rs)."""


@value(kw_only=True)
class VmmIdentity:
    """What a process says it is; `kind`, `name` and `uuid` are None if it is no known VMM.

    `monitors` are the paths of the sockets at which QEMU serves QMP. `has_vpmu` is False if the
    VMM gives no VM a PMU or its options rule one out, True if they ask for one, None if they leave
    it open. `sets_pmu` is True if the VMM chooses the PMU itself, as kvmtool does.
    """

    kind: VmmKind | None = None
    name: str | None = None
    uuid: str | None = None
    monitors: tuple[str, ...] = ()
    has_vpmu: bool | None = None
    sets_pmu: bool = False

    @property
    def gives_no_vpmu(self) -> bool:
        """Whether no VM of this VMM has a PMU, whatever its options are."""
        return self.kind in _WITHOUT_VPMU

    def explain_no_vpmu(self) -> str:
        """Return why a VM has no PMU: its VMM gives none to any VM, or gave none to this one."""
        if self.gives_no_vpmu:
            return f"it has no PMU: {self.kind} gives no VM a PMU"
        return "it has no PMU: its VMM made it without one"


def vcpu_of_thread(comm: str) -> int | None:
    """Return the number of the vCPU whose thread has this name; None if it is no such name."""
    match = VCPU_THREAD.fullmatch(comm)
    return int(match[1]) if match else None


def is_pmuctl(argv: Sequence[str], comm: str) -> bool:
    """Return whether a process calls itself pmuctl: its VMs are the scratch VMs of its probes.

    The name of the main thread, `comm`, counts only without a command line.
    """
    program = _strip_folder(argv[0]) if argv else comm
    if program.startswith("python"):
        return any(_strip_folder(word) == "pmuctl" for word in argv[1:6])
    return program == "pmuctl"


def names_vmm(argv: Sequence[str]) -> bool:
    """Return whether a command line begins with the name of a VMM that pmuctl knows."""
    argv = skip_loader(argv)
    return bool(argv) and _find_kind(argv[0], argv) is not None


def kind_of_threads(comms: Iterable[str]) -> VmmKind | None:
    """Return the VMM whose threads have these names; None if they are no VMM's, or of many."""
    comms = set(comms)
    return next(
        (kind for form, kind in _THREADS if any(re.fullmatch(form, comm) for comm in comms)), None
    )


def identify(
    argv: Sequence[str], comm: str, *, pid: int | None = None, kind: VmmKind | None = None
) -> VmmIdentity:
    """Identify a VMM by its command line, or if that names none by the name of its main thread.

    The name of the thread, `comm`, is no better evidence: any process can set it. `pid` is the
    process id, by which kvmtool names a VM that was given no name. `kind` is the VMM if neither
    names one.
    """
    argv, otherwise = skip_loader(argv), kind
    if otherwise is VmmKind.KVMTOOL and not set(argv[1:2]) & set(_KVMTOOL_STARTS):
        otherwise = None  # without its own options a PMU is neither asked for nor ruled out
    kind = _find_kind(argv[0], argv) if argv else None
    kind = kind or _find_kind(comm, argv) or _find_renamed_qemu(argv, comm) or otherwise
    match kind:
        case None:
            return VmmIdentity()
        case VmmKind.QEMU | VmmKind.STRATOVIRT:
            identity = _identify_qemu(argv, kind)
        case VmmKind.KVMTOOL:
            identity = _identify_kvmtool(argv, pid)
        case VmmKind.CROSVM:
            has_vpmu = False if "--no-pmu" in argv else None
            name = _read_option(argv, "--name")
            identity = VmmIdentity(kind=kind, name=vm_name(name), has_vpmu=has_vpmu)
        case VmmKind.CLOUD_HYPERVISOR:
            platform = _parse_options(_read_option(argv, "--platform") or "")
            identity = VmmIdentity(kind=kind, uuid=vm_uuid(platform.get("uuid")))
        case VmmKind.FIRECRACKER | VmmKind.DRAGONBALL:
            name = _read_option(argv, "--id", "-id")
            identity = VmmIdentity(kind=kind, name=vm_name(name))
        case VmmKind.LIBKRUN:
            identity = VmmIdentity(kind=kind, name=vm_name(_read_libkrun_name(argv)))
        case VmmKind.ALIOTH:
            identity = VmmIdentity(kind=kind)
    if kind in _WITHOUT_VPMU:
        identity = replace(identity, has_vpmu=False)
    if identity.name is None and argv and argv[0].startswith(_PRETTY_NAME):
        identity = replace(identity, name=vm_name(argv[0].removeprefix(_PRETTY_NAME)))
    return identity


def _find_kind(name: str, argv: Sequence[str]) -> VmmKind | None:
    """Return the VMM of a program or main thread of this name."""
    if name.startswith(_KRUN_TITLE):
        return VmmKind.LIBKRUN
    program = _get_program(name)
    if program in _KVMTOOL_ALIASES and argv[1:2] and argv[1] in _KVMTOOL_STARTS:
        return VmmKind.KVMTOOL
    return next((kind for form, kind in _PROGRAMS if re.fullmatch(form, program)), None)


def _get_program(name: str) -> str:
    """Return the name of a program without its folder and what nixpkgs' wrappers add to it."""
    program = _strip_folder(name)
    if program.startswith("."):
        program = program.lstrip(".")
        for _ in range(WRAPPERS_MAX):
            program = program.removesuffix("-wrapped")
    return program


def _find_renamed_qemu(argv: Sequence[str], comm: str) -> VmmKind | None:
    """Return QEMU if the main thread has the name that `-name process=NAME` has QEMU give it."""
    for option, word in _iter_qemu_options(argv):
        if option == "name":
            process = _parse_options(word, implied="guest").get("process")
            cut = (process or "").encode(errors="replace")[:COMM_MAX].decode(errors="replace")
            if comm and cut == comm:
                return VmmKind.QEMU
    return None


def _identify_qemu(argv: Sequence[str], kind: VmmKind) -> VmmIdentity:
    """Identify QEMU, or StratoVirt, which has the same options.

    Of an option that is given twice, the last one counts; `-smbios type=1,uuid=UUID` sets the UUID
    as `-uuid` does (smbios_entry_add() in hw/smbios/smbios.c).
    """
    is_qemu = kind is VmmKind.QEMU
    name = uuid = None
    # StratoVirt gives a VM no PMU unless it is asked to
    has_vpmu: bool | None = None if is_qemu else False
    for option, word in _iter_qemu_options(argv):
        if option == "name":
            name = _parse_options(word, implied="guest").get("guest", name)
        elif option == "uuid":
            uuid = word
        elif option == "smbios":
            options = _parse_options(word)
            if options.get("type", "").removeprefix("0x").lstrip("0") == "1":
                uuid = options.get("uuid", uuid)
        elif option == "cpu":
            pmu = _parse_options(word, implied="model").get("pmu")
            if pmu is not None:
                has_vpmu = pmu in ("on", "yes", "true", "y")
            elif is_qemu:
                has_vpmu = None
    return VmmIdentity(
        kind=kind,
        name=vm_name(name),
        uuid=vm_uuid(uuid),
        monitors=tuple(_iter_qmp_sockets(argv)) if is_qemu else (),
        has_vpmu=has_vpmu,
    )


def _identify_kvmtool(argv: Sequence[str], pid: int | None) -> VmmIdentity:
    """Identify kvmtool; without `--name` it calls its VM guest-PID (kvm_cmd_run_init()).

    The short option -n is `--network`.
    """
    name = _read_option(argv, "--name")
    if name is None and pid is not None:
        name = f"guest-{pid}"
    has_vpmu = False
    for word in _iter_own_words(argv):
        if word in ("--pmu", "--pm", "--no-pmu"):
            has_vpmu = word != "--no-pmu"
    return VmmIdentity(
        kind=VmmKind.KVMTOOL, name=vm_name(name), has_vpmu=has_vpmu, sets_pmu=has_vpmu
    )


def _read_libkrun_name(argv: Sequence[str]) -> str | None:
    """Return the name in `krunvm start NAME` or in microsandbox's `--name NAME`."""
    program = _get_program(argv[0]) if argv else ""
    if program.startswith(("msb", "microsandbox")):
        return _read_option(argv, "--name")
    if program != "krunvm" or argv[1:2] != ["start"]:
        return None
    words = _iter_own_words(argv[1:])
    for word in words:
        if not word.startswith("-"):
            return word
        if "=" not in word:
            next(words, None)
    return None


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
    for number, part in enumerate(_OPTION.finditer(text)):
        key, equals, setting = part[1].replace(",,", ",").partition("=")
        if equals:
            found[key] = setting
        elif number == 0 and implied:
            found[implied] = key
        elif key:
            found[key] = "on"
    return found


def _iter_own_words(argv: Sequence[str]) -> Iterator[str]:
    """Yield the words after the program name that are a VMM's own, those before a `--`."""
    for word in argv[1:]:
        if word == "--":
            return
        yield word


def _read_option(argv: Sequence[str], *names: str) -> str | None:
    """Return the last value of an option: `--name X`, `--name=X`; None without.

    What follows a `--` is not the VMM's.
    """
    found = None
    words = list(_iter_own_words(argv))
    for word, following in zip(words, [*words[1:], None], strict=False):
        name, equals, rest = word.partition("=")
        if name in names:
            found = rest if equals else following
    return found


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
