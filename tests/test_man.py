# SPDX-License-Identifier: Apache-2.0
"""The manual pages say what the program is: its commands, options, columns, messages, output."""

import json
import re
import shlex
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pmuctl.control.protocol import messages, qmp_codec
from pmuctl.control.protocol.messages import COMMANDS, EVENTS
from pmuctl.errors import ExitStatus, PmuctlError, UnsupportedError
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DERIVED
from pmuctl.render.affinity import AFFINITY_COLUMNS, CHECK_COLUMNS
from pmuctl.render.columns import Column
from pmuctl.render.events import EVENT_COLUMNS
from pmuctl.render.host import CAPABILITY_COLUMNS, HOST_COLUMNS
from pmuctl.render.pmu import CPU_COLUMNS, PMU_COLUMNS
from pmuctl.render.reports import (
    CHANGE_COLUMNS,
    CONFORMANCE_COLUMNS,
    DOCTOR_COLUMNS,
    SYMPTOM_COLUMNS,
)
from pmuctl.render.vcpu import VCPU_COLUMNS
from pmuctl.render.vm import VM_COLUMNS
from pmuctl.schema import Bool, Int, Kind, List, Maybe, Nullable, Obj, Str, Tuple
from tests.cli.conftest import Machine, machine  # noqa: F401 - a fixture
from tests.command_tree import COMMAND_PATHS, Path_, leaf, options_of, parse_words
from tests.fakes.vmm import FakeVm, fake_proc
from tests.man_pages import MAIN, PAGES, PROTOCOL, ROOT, examples, is_example, plain, source

COLUMNS: Mapping[Path_, Sequence[Column[Any]] | None] = {
    ("host", "info"): HOST_COLUMNS,
    ("host", "capabilities"): CAPABILITY_COLUMNS,
    ("pmu", "list"): PMU_COLUMNS,
    ("pmu", "show"): None,  # those of pmu list
    ("pmu", "cpus"): CPU_COLUMNS,
    ("vm", "list"): VM_COLUMNS,
    ("vm", "show"): None,  # those of vm list
    ("vm", "vcpus"): VCPU_COLUMNS,
    ("vm", "set"): CHANGE_COLUMNS,
    ("vm", "release"): None,  # those of vm set
    ("affinity", "set"): AFFINITY_COLUMNS,
    ("affinity", "align"): None,  # those of affinity set
    ("affinity", "check"): CHECK_COLUMNS,
    ("conformance",): CONFORMANCE_COLUMNS,
    ("doctor",): (*DOCTOR_COLUMNS, *SYMPTOM_COLUMNS),
    ("monitor",): EVENT_COLUMNS,
}
"""The columns of each command that has the option --output."""

OTHERS = {
    *("env.1", "taskset.1", "flock.2", "ioctl.2", "perf_event_open.2", "ptrace.2"),
    *("sched_setaffinity.2", "seccomp.2", "systemd.service.5", "unix.7", "cgroups.7"),
}
"""Pages of other projects that ours refer to."""

COMMAND_WORDS = "host|pmu|vm|affinity|run|monitor|doctor"
"""The first words of the command lines in examples that are parsed."""

GROUPS = ("Output", "Verbosity", "Captured host", "Connection", "Dry run")


def sections(page: Path, macro: str = "Sh") -> dict[str, list[str]]:
    """The lines below each heading; those of .Ss end at the next .Sh."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in source(page):
        if line.startswith((".Sh ", f".{macro} ")):
            lines = []
            if line.startswith(f".{macro} "):
                found[line[4:]] = lines
        else:
            lines.append(line)
    return found


def flags(line: str) -> list[str]:
    """The options that a macro line names: `.It Fl o Ar COLS , Fl \\-output Ar COLS`."""
    found = re.findall(r"(?:\.| )Fl (\S+)", line) if line.startswith(".") else []
    return ["-" + plain(word) for word in found]


def page_of(path: Path_) -> Path:
    """The page of a command: that of its noun, or of itself."""
    return ROOT / f"man/pmuctl-{path[0]}.1"


def own_section(path: Path_) -> list[str]:
    """What the page of a command says of it: all, of a command that is no verb of a noun."""
    if len(path) == 1:
        return source(page_of(path)) if page_of(path).exists() else []
    return sections(page_of(path), "Ss").get(" ".join(path), [])


def listed(lines: Sequence[str]) -> set[str]:
    """The options that have an entry of their own."""
    return {flag for line in lines if line.startswith(".It Fl ") for flag in flags(line)}


def shared(lines: Sequence[str]) -> set[str]:
    """The options of the groups in pmuctl(1) that a command says it takes."""
    taken = re.search(r"^It accepts the\n(.*?)\noptions? of\n", "\n".join(lines), re.DOTALL | re.M)
    names = re.split(r",|\n|\band\b|\.Em", taken[1]) if taken else []
    groups = [name.strip() for name in names if name.strip()]
    headings = sections(MAIN, "Ss")
    return {flag for group in groups for flag in listed(headings[f"{group.capitalize()} options"])}


def column_entries(lines: Sequence[str]) -> list[str]:
    """The columns that have an entry: those in capital letters."""
    return [line[7:] for line in lines if re.fullmatch(r"\.It Cm [A-Z][A-Z-]*", line)]


def every_column(columns: Sequence[Column[Any]]) -> Iterator[str]:
    for column in columns:
        yield column.name
        yield from every_column(column.nested or ())


def normal(text: str) -> list[str]:
    """Lines with the numbers of processes, threads, moments and who runs the tests, and runs of
    spaces, made equal."""
    lines = (re.sub(r"\b\d{3,}\b|(?<=^OWNER) +\d+", " N", line) for line in text.splitlines())
    return [re.sub(r" +", " ", line).rstrip() for line in lines if line]


def test_there_are_pages() -> None:
    assert MAIN in PAGES
    assert PROTOCOL in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_mandoc_has_nothing_to_say(page: Path) -> None:
    ran = subprocess.run(
        ["mandoc", "-T", "lint", "-W", "warning", page],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_is_named_as_its_file_and_refers_to_pages_that_exist(page: Path) -> None:
    name, section = page.stem, page.suffix[1:]
    lines = source(page)
    assert f".Dt {name.upper()} {section}" in lines
    assert f".Nm {name}" in lines
    for line in lines:
        for target, its_section in re.findall(r"(?:\.| )Xr (\S+) (\d)", line):
            assert f"{target}.{its_section}" in OTHERS | {its.name for its in PAGES}, line
            assert (target, its_section) != (name, section), line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_references_to_sections_lead_somewhere(page: Path) -> None:
    headings = {**sections(page), **sections(page, "Ss")}
    lines = source(page)
    for number, line in enumerate(lines):
        if line.startswith(".Sx "):
            heading = re.sub(r"( [.,;)]+)+$", "", line[4:])
            elsewhere = " ".join(lines[number + 1 : number + 4])
            target = re.match(r"(?:of|there.?|in) \.Xr (\S+) (\d)", elsewhere)
            pages = sections(ROOT / f"man/{target[1]}.{target[2]}") if target else headings
            assert heading in pages or heading in sections(MAIN), line


@pytest.mark.parametrize("path", COMMAND_PATHS, ids=" ".join)
def test_a_command_has_its_entry_and_its_synopsis(path: Path_) -> None:
    assert own_section(path), f"{page_of(path).name} has no .Ss {' '.join(path)}"
    synopsis = sections(page_of(path))["SYNOPSIS"]
    assert f".Cm {' '.join(path)}" in synopsis
    its = "\n".join(synopsis).partition(f".Cm {' '.join(path)}\n")[2].partition(".Nm ")[0]
    words = re.findall(r"[A-Z]{2,}", its)
    for argument in (p for p in leaf(path).params if p.param_type_name == "argument"):
        metavar = re.findall(r"[A-Z]+", argument.metavar)
        assert set(metavar) <= set(words), argument.metavar


@pytest.mark.parametrize("path", COMMAND_PATHS, ids=" ".join)
def test_the_options_of_a_command_are_those_of_its_page(path: Path_) -> None:
    section = own_section(path)
    assert listed(section) | shared(section) == options_of(path)
    assert not listed(section) & shared(section)
    for line in section:
        assert set(flags(line)) <= options_of(path), line


def test_the_shared_options_are_those_of_several_commands() -> None:
    headings = sections(MAIN, "Ss")
    assert [its for its in headings if its.endswith(" options")] == [
        f"{group} options" for group in GROUPS
    ]
    for group in GROUPS:
        for flag in listed(headings[f"{group} options"]):
            assert any(flag in options_of(path) for path in COMMAND_PATHS), flag


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_an_option_or_a_command_that_does_not_exist(page: Path) -> None:
    every = {"-h", "--help", "--version"}.union(*map(options_of, COMMAND_PATHS))
    text = "\n".join(map(plain, source(page)))
    for line in source(page):
        assert set(flags(line)) <= every, line
    nouns = {path[0] for path in COMMAND_PATHS}
    named = re.findall(r"^(?:.*Nm(?: pmuctl)? |\.)?Cm ([a-z]+) ([a-z]+)\b", text, re.MULTILINE)
    for noun, verb in named:
        assert noun not in nouns or (noun, verb) in COMMAND_PATHS, (noun, verb)
    headings = sections(page).get("COMMANDS") and sections(page, "Ss")
    for heading in headings or ():
        if page.suffix == ".1" and heading.split()[0] in nouns:
            assert tuple(heading.split()) in COMMAND_PATHS, heading


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_lines_of_examples_can_be_parsed(page: Path) -> None:
    for line, inside in is_example(page):
        for words in re.findall(rf"\bpmuctl ((?:{COMMAND_WORDS}) [^|;&>]+)", plain(line)):
            if inside and not line.startswith(("error:", "  fix:")):
                parse_words(shlex.split(words))


def test_every_command_with_columns_is_known_here() -> None:
    assert {path for path in COMMAND_PATHS if "--output" in options_of(path)} == set(COLUMNS)


@pytest.mark.parametrize("path", COLUMNS, ids=" ".join)
def test_the_columns_of_a_command_are_those_of_its_page(path: Path_) -> None:
    section = own_section(path)
    columns = COLUMNS[path]
    if columns is None:
        assert "columns of" in " ".join(section)
        assert not column_entries(section)
        return
    assert column_entries(section) == list(every_column(columns))
    usual, _, asked_for = "\n".join(section).partition("Columns that are printed only on request:")
    at_top = [column for column in columns if column.shown]
    hidden = [column for column in columns if not column.shown]
    assert set(column_entries(usual.splitlines())) >= {column.name for column in at_top}
    assert bool(asked_for) == bool(hidden)
    assert set(column_entries(asked_for.splitlines())) >= {column.name for column in hidden}


def test_the_words_of_state_window_and_outcome_are_those_of_the_page() -> None:
    from pmuctl.cli.options import KEYS
    from pmuctl.manage.inventory import replies
    from pmuctl.manage.inventory.wait import Awaited
    from pmuctl.model.vm import VmState, Window

    lists, waits = own_section(("vm", "list")), own_section(("vm", "wait"))

    def entries(lines: Sequence[str], start: str, end: str) -> list[str]:
        between = lines[lines.index(start) : lines.index(end)]
        return [line[7:] for line in between if line.startswith(".It Cm ")]

    assert entries(lists, ".It Cm STATE", ".It Cm PID")[1:] == list(VmState)
    assert entries(lists, ".It Cm WINDOW", ".It Cm ALIGNED")[1:] == list(Window)
    origins = [*messages.ORIGIN.words, replies.RECORDED, DERIVED]
    assert entries(lists, ".It Cm PMU-ORIGIN", ".It Cm COUNTERS")[1:] == origins
    sets = own_section(("vm", "set"))
    keys = entries(sets, "each key at most once:", "A setting that is not given stays as it is.")
    assert tuple(word.split()[0] for word in keys) == KEYS
    assert entries(waits, ".It Fl \\-for Ar STATE", ".It Fl \\-timeout Ar SEC") == list(Awaited)


def entries_of(page: str, heading: str) -> list[str]:
    """The words that have an entry in one section of a page."""
    lines = sections(ROOT / "man" / page)[heading]
    return [line[7:] for line in lines if line.startswith(".It Cm ")]


def test_the_events_and_the_checks_are_those_of_their_pages() -> None:
    from pmuctl.manage.diagnosis import host_checks, vm_checks
    from pmuctl.model.host_diff import ChangeKind

    assert entries_of("pmuctl-monitor.1", "EVENTS") == list(ChangeKind)
    assert entries_of("pmuctl-doctor.1", "CHECKS") == [*host_checks.CHECKS, *vm_checks.CHECKS]


def test_the_page_of_doctor_lists_the_symptoms() -> None:
    from pmuctl.model.symptoms.table import SYMPTOMS

    listed = entries_of("pmuctl-doctor.1", "SYMPTOMS")
    assert sorted(listed) == sorted(each.id for each in SYMPTOMS)


def test_the_formats_are_those_of_the_page() -> None:
    from pmuctl.render.formats import SCHEMA, Format

    lines = sections(MAIN)["OUTPUT"]
    entries = [line for line in lines if line.startswith(".It Cm ")]
    assert [word for line in entries for word in re.findall(r"[a-z]+", line[7:])] == list(Format)
    assert any(f'"schema": {SCHEMA},' in line for line in source(MAIN))


def test_exit_status_is_the_table_of_errors() -> None:
    entries = [line for line in sections(MAIN)["EXIT STATUS"] if line.startswith(".It ")]
    assert entries == [f".It {int(status)} Pq Cm {status.name.lower()}" for status in ExitStatus]


def test_the_output_of_the_examples_on_captured_machines(
    dump: Callable[[str], Path],
    machine: Machine,  # noqa: F811
) -> None:
    roots: dict[str, Path] = {}
    for words, out in examples(ROOT / "man/pmuctl-pmu.1"):
        *argv, option, name = shlex.split(words)
        assert option == "--sysroot"
        root = roots.get(name) or roots.setdefault(name, dump(name))
        ran = machine.run(*argv, option, str(root))
        assert (ran.stdout + ran.stderr).splitlines() == [line for line in out if line], words


class RefVm(FakeVm):
    """A VM that calls itself what those of the pages do."""

    vmm = "reference-vmm"


def with_status(status: int, text: str) -> str:
    """The output of an example, with its exit status where that is not 0."""
    return text + (f"(exit status {status})\n" if status else "")


@pytest.mark.parametrize("name", ["pmuctl.1", "pmuctl-vm.1", "pmuctl-affinity.1"])
def test_the_output_of_the_examples_with_vms(
    name: str,
    machine: Machine,  # noqa: F811
    dump: Callable[[str], Path],
) -> None:
    machine.root = dump("two-pmus-7.3")
    machine.runtime.mkdir()
    machine.runtime.chmod(0o755)
    pages_socket, its_socket = "/run/pmuctl/", f"{machine.runtime}/"
    web1, build = RefVm("web1"), RefVm("build")
    if name == "pmuctl-vm.1":
        machine.start(build)
        machine.servers["build"].seal("it did not wait")
        build.initialise()
        build.run()
    machine.start(web1)  # the last one's threads count: both have the same ids
    if name == "pmuctl-affinity.1":
        machine.threads = web1.threads
        assert machine.run("vm", "set", "web1", "pmu", "armv8_cortex_a72").status == 0
        machine.servers["web1"].seal("it was released")
        web1.threads.masks[1002] = CpuSet.parse("0-3")
        put_threads_on(machine.proc, {1001: 2, 1002: 3})
    for words, out in examples(ROOT / "man" / name):
        if words.startswith("vm wait"):
            web1.initialise()
            web1.run()
            put_threads_on(machine.proc, {1001: 2, 1002: 3})
        ran = machine.run(*shlex.split(words))
        said = with_status(ran.status, ran.stdout + ran.stderr).replace(its_socket, pages_socket)
        assert normal(said) == normal("\n".join(out)), words


def put_threads_on(proc: Path, cpus: Mapping[int, int]) -> None:
    """Give threads a CPU that they were last on."""
    for tid, cpu in cpus.items():
        for task in proc.glob(f"*/task/{tid}"):
            # field 3 follows the name in parentheses, processor is field 39 (proc_pid_stat(5))
            fields = ["S", *["0"] * 35, str(cpu), "0"]
            (task / "stat").write_text(f"{tid} (vcpu) {' '.join(fields)}\n")


# --- the protocol ---


def describe(kind: Kind | Maybe, plural: str = "") -> str:
    """A kind of value in the words of the page."""
    match kind:
        case Maybe(of):
            return f"optional {describe(of)}"
        case Nullable(of):
            return f"{describe(of)}, or null"
        case Bool():
            return f"boolean{plural}"
        case Int(least, most):
            if most == Int().most:
                return f"integer{plural}" + (f" from {least}" if least else "")
            return f"integer{plural} {least}-{most}"
        case Str(most, words, _):
            if words:
                return f"one of {', '.join(words)}"
            return f"string{plural}" + (f" of at most {most} characters" if most != 4096 else "")
        case Tuple(of):
            inner = ", ".join(describe(its) for its in of)
            return {2: f"pair{plural} [{inner}]"}[len(of)]
        case List(of, least, most):
            bounds = "" if most == List(of).most else f"at most {most} "
            if least:
                bounds = f"{least} to {most} "
            return f"list of {bounds}{describe(of, 's')}"
        case Obj():
            return f"object{plural}"
    raise TypeError(kind)


def fields(kind: Kind | Maybe, path: str = "") -> Iterator[tuple[str, str]]:
    """Every member that a message has, as the page names it, with the words for its kind."""
    if path:
        yield path, describe(kind)
    inner = kind
    while isinstance(inner, Maybe | Nullable):
        inner = inner.of
    if isinstance(inner, List) and isinstance(inner.of, Obj):
        inner, path = inner.of, f"{path}[]"
    if isinstance(inner, Obj):
        for name, member in inner.members.items():
            yield from fields(member, f"{path}.{name}" if path else name)


def told_fields(lines: Sequence[str]) -> list[tuple[str, str]]:
    """The members that have an entry, and the kind it gives."""
    return [
        (line[7:], plain(after).removeprefix(".Vt "))
        for line, after in zip(lines, [*lines[1:], ""], strict=False)
        if line.startswith(".It Va ")
    ]


def subsections(heading: str) -> dict[str, list[str]]:
    """The .Ss of one .Sh of the protocol's page."""
    text = "\n".join(sections(PROTOCOL)[heading])
    pieces = re.split(r"^\.Ss (.*)\n", text, flags=re.MULTILINE)[1:]
    return {name: body.split("\n") for name, body in zip(pieces[::2], pieces[1::2], strict=True)}


def test_the_protocol_has_these_commands_and_events() -> None:
    assert list(subsections("COMMANDS")) == list(COMMANDS)
    assert list(subsections("EVENTS")) == list(EVENTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_protocol_command_has_these_arguments_and_results(name: str) -> None:
    command, lines = COMMANDS[name], subsections("COMMANDS")[name]
    starts = [n for n, line in enumerate(lines) if line.startswith("Result:")]
    start = starts[0] if starts else len(lines)
    assert told_fields(lines[:start]) == list(fields(command.arguments))
    result = list(fields(command.result))
    if isinstance(command.result, List):  # it has no name of its own
        result = [("[]", describe(command.result)), *result]
    assert told_fields(lines[start:]) == result
    assert ("Arguments:" in lines) == bool(command.arguments.members)


@pytest.mark.parametrize("name", EVENTS)
def test_a_protocol_event_has_this_data(name: str) -> None:
    assert told_fields(subsections("EVENTS")[name]) == list(fields(EVENTS[name]))


def test_the_protocol_has_these_error_classes() -> None:
    classes: dict[str, type[PmuctlError]] = {
        **qmp_codec.ERROR_CLASSES,
        "CommandNotFound": UnsupportedError,
        "GenericError": type(qmp_codec.error_from({"class": "GenericError"}, subject="")),
    }
    entries = [line for line in sections(PROTOCOL)["ERROR CLASSES"] if line.startswith(".It Cm ")]
    assert entries == [
        f".It Cm {name} Pq exit status {int(cls.status)}" for name, cls in classes.items()
    ]
    told = dict(told_fields(sections(PROTOCOL)["ERROR CLASSES"]))
    data = qmp_codec.error_message(PmuctlError(""), {"step": None, "applied": []})["data"]
    assert isinstance(data, dict)
    assert list(told) == list(data)


def test_the_limits_of_the_protocol_are_those_of_the_code() -> None:
    modules = [
        import_module(f"pmuctl.{name}")
        for name in (
            *("schema", "control.protocol.qmp_codec", "control.runtime.sockets"),
            "control.runtime.listener",
            *("control.server.connection", "control.server.commands", "control.server.server"),
            *("conformance.peer", "manage.inventory.poller"),
        )
    ]
    limits = {
        name: int(value)
        for module in modules
        for name, value in vars(module).items()
        if re.fullmatch(r"[A-Z_]+_MAX|STALL_SECONDS|STEPS_TOLD|OWN_BYTES|OTHERS_BYTES", name)
    }
    lines = sections(PROTOCOL)["TRUST AND LIMITS"]
    found = [re.fullmatch(r"\.It (\d+) Pq Dv ([A-Z_]+)", line) for line in lines]
    assert {its[2]: int(its[1]) for its in found if its} == limits
    assert f'.Dq "{messages.VM_NAME.pattern}" .' in source(PROTOCOL)


def transcript() -> list[tuple[str, object]]:
    """The session in the page: who speaks, and what."""
    lines = [line for line, inside in is_example(PROTOCOL) if inside and line[0] != "."]
    folded: list[str] = []
    for line in map(plain, lines):
        if line.startswith(("C: ", "S: ")):
            folded.append(line)
        else:
            folded[-1] += " " + line.removeprefix("   ")
    return [(line[0], json.loads(line[3:])) for line in folded]


def variable(message: object) -> object:
    """A message without what differs from one session to the next."""
    text = json.dumps(message, sort_keys=True)
    text = re.sub(r'("(?:pid|tid|seconds|microseconds|since|pmuctl)": )[^,}]+', r"\1N", text)
    return re.sub(r"sched_setaffinity\(\d+", "sched_setaffinity(N", text)


def test_the_session_in_the_page_is_the_one_that_is_held(
    machine: Machine,  # noqa: F811
) -> None:
    vm = RefVm("raw", cpus="0-3")
    vm.uuid = None
    fake_proc(machine.proc, 1, tids=[])
    assert vm.threads.masks[1001] == CpuSet.parse("0-3")
    machine.start(vm)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(machine.runtime / "raw.sock"))
        answers = client.makefile("rb")
        session = transcript()
        assert len(session) > 10
        for speaker, message in session:
            if speaker == "C":
                client.sendall(json.dumps(message).encode())
            else:
                assert variable(json.loads(answers.readline())) == variable(message)


def test_the_wheel_has_the_pages(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    ran = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for page in PAGES:
        place = f".data/data/share/man/man{page.suffix[1:]}/{page.name}"
        assert any(name.endswith(place) for name in names), place
