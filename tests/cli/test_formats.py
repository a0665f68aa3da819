# SPDX-License-Identifier: Apache-2.0
"""What every read command owes to its reader: formats, columns, terminals, broken outputs."""

import csv
import inspect
import io
import json
import os
import pty
import re
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import pytest

from pmuctl import errors
from pmuctl.cli.app import root
from pmuctl.cli.main import main
from pmuctl.errors import PmuctlError, WrongWordError
from pmuctl.host.sysfs import Sysfs
from pmuctl.render.formats import Format
from pmuctl.render.streams import guarded
from tests.cli.conftest import Machine
from tests.fakes.vmm import FakeVm

A53, A72 = "armv8_cortex_a53", "armv8_cortex_a72"
LISTS: Mapping[str, str] = {
    "pmu list": "pmus",
    "pmu cpus": "cpus",
    "vm list": "vms",
    "vm vcpus": "vcpus",
}
"""The commands that list things, and the JSON key of the list."""
RECORDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "host info": ("host", ()),
    "pmu show": ("pmu", (A72,)),
    "vm show": ("vm", ("web1",)),
}
"""The commands that show one thing, its JSON key, and their arguments."""
READ: Sequence[tuple[str, ...]] = [
    *(tuple(command.split()) for command in LISTS),
    *((*command.split(), *words) for command, (_, words) in RECORDS.items()),
]
OPTIONS: Sequence[tuple[str, ...]] = [(), ("-O",), ("-J",), *(("--format", its) for its in Format)]
PMUCTL = [sys.executable, "-P", "-c", "from pmuctl.cli.main import run; run()"]


@pytest.fixture
def hosting(machine: Machine) -> Machine:
    """A machine with a VM."""
    machine.start(FakeVm())
    return machine


def each(options: Sequence[tuple[str, ...]]) -> pytest.MarkDecorator:
    """Run a test for each read command with each of these options."""
    cases = [(*words, *its) for words in READ for its in options]
    return pytest.mark.parametrize("words", cases, ids=" ".join)


def test_every_command_that_reads_is_here() -> None:
    """A new command has to be added above, so that all of this holds for it."""
    tree = root()
    found = set()
    for noun in ("host", "pmu", "vm"):
        group = tree.get_command(None, noun)
        for verb in group.list_commands(None):
            params = group.get_command(None, verb).params
            if "--format" in {name for param in params for name in param.opts}:
                found.add(f"{noun} {verb}")
    elsewhere = {"vm set", "vm release", "host capabilities"}
    assert found - elsewhere == {*LISTS, *RECORDS}


BESIDE = {
    **dict.fromkeys(
        ("vm list", "vm vcpus"),
        ("unreadable", "partial", "left_out", "scratch", "unscanned", "unsearched"),
    ),
    "pmu list": ("partial",),
}
"""What JSON has besides the rows: whether processes or PMUs are missing among them."""


def the_value(document: dict[str, Any]) -> Any:
    """The rows, or the one object, of a JSON document."""
    (value,) = (its for key, its in document.items() if key not in ("pmuctl", *BESIDE["vm list"]))
    return value


ADDITIONS = ("candidates", "has_pmu", "midr", "since_iso", "applied_at_iso")


def without_additions(its: dict[str, Any]) -> dict[str, Any]:
    """An object as its columns, without those that are in JSON whether asked for or not."""
    return {key: value for key, value in its.items() if key not in ADDITIONS}


@each([("-J",)])
def test_json_is_one_object_that_says_what_it_is(hosting: Machine, words: tuple[str, ...]) -> None:
    ran = hosting.run(*words)
    assert (ran.status, ran.stderr) == (0, "")
    assert ran.stdout.count("\n") == 1
    document = json.loads(ran.stdout)
    command = " ".join(words[:2])
    key = LISTS.get(command) or RECORDS[command][0]
    assert list(document) == ["pmuctl", key, *BESIDE.get(command, ())]
    assert document["pmuctl"] == {"schema": 1, "command": command}
    assert hosting.run(*words[:-1], "--format", "json").stdout == ran.stdout


@pytest.mark.parametrize("command", LISTS)
def test_an_empty_list_is_one_in_every_format(
    machine: Machine, dump: Callable[[str], Path], command: str
) -> None:
    machine.root = machine.root.parent / "empty"
    (machine.root / "sys").mkdir(parents=True)
    words = command.split()
    ran = machine.run(*words, "-J")
    assert (ran.status, ran.stderr) == (0, "")
    assert json.loads(ran.stdout)[LISTS[command]] == []
    for format in ("table", "jsonl", "raw", "name", "csv", "tsv"):
        ran = machine.run(*words, "--format", format)
        assert ran.status == 0
        assert len(ran.lines) == (1 if format in ("csv", "tsv") else 0)
        assert ran.stderr.startswith("no ")
        assert machine.run(*words, "--format", format, "-n", "-q").stderr == ""
        assert machine.run(*words, "--format", format, "-n", "-q").stdout == ""


def from_raw(line: str) -> list[str]:
    return [
        re.sub(r"\\x([0-9a-f]{2})", lambda its: chr(int(its[1], 16)), word)
        for word in line.split(" ")
    ]


@each([(), ("-O",)])
def test_every_format_has_the_same_values(hosting: Machine, words: tuple[str, ...]) -> None:
    def run(format: str, *more: str) -> str:
        ran = hosting.run(*words, "--format", format, *more)
        assert (ran.status, ran.stderr) == (0, "")
        return ran.stdout

    rows = list(csv.reader(io.StringIO(run("csv"))))
    assert len({len(row) for row in rows}) == 1
    assert [line.split("\t") for line in run("tsv").splitlines()] == rows
    assert [from_raw(line) for line in run("raw").splitlines()] == rows
    objects = [without_additions(json.loads(line)) for line in run("jsonl").splitlines()]
    keys = [name.lower().replace("-", "_") for name in rows[0]]
    keys = [key for key in keys if key not in ADDITIONS]
    assert [list(its) for its in objects] == [keys] * (len(rows) - 1)
    document = json.loads(run("json"))
    value = the_value(document)
    its = value if isinstance(value, list) else [value]
    assert [without_additions(each) for each in its] == objects
    assert run("name").splitlines() == [row[0] for row in rows[1:]]
    assert list(csv.reader(io.StringIO(run("csv", "-n")))) == rows[1:]
    if words[:2] in [tuple(its.split()) for its in LISTS]:
        assert [line.split() for line in run("table").splitlines()] == [
            " ".join(row).split() for row in rows
        ]


def test_json_has_the_types_that_are_promised(hosting: Machine) -> None:
    hosting.run("vm", "set", "web1", "pmu", A72)
    pmu = json.loads(hosting.run("pmu", "show", A72, "-J").stdout)["pmu"]
    assert (pmu["type"], pmu["cpus"], pmu["online"]) == (11, [2, 3], [2, 3])
    assert {"name": "cpu_cycles", "code_hex": "0x0011", "code": 17} in pmu["event_list"]
    assert pmu["caps"]["slots"] == "0x00000000"
    vm = json.loads(hosting.run("vm", "show", "web1", "-J").stdout)["vm"]
    assert (vm["pid"], vm["vcpus"], vm["counters"]) == (os.getpid(), 2, None)
    assert vm["vcpu_list"][0] == {
        "vcpu": 0,
        "tid": 1001,
        "initialised": False,
        "has_run": False,
        "evidence": "socket",
    }


@each([()])
def test_columns_are_chosen_in_every_format(hosting: Machine, words: tuple[str, ...]) -> None:
    header = hosting.run(*words, "--format", "csv").lines[0].split(",")
    first, last = header[0], header[-1]
    asked = ("-o", f"{last},{first.lower()}")
    for format, separator in (("csv", ","), ("tsv", "\t"), ("raw", " ")):
        ran = hosting.run(*words, *asked, "--format", format)
        assert ran.lines[0].split(separator) == [last, first]
    its = json.loads(hosting.run(*words, *asked, "--format", "jsonl").lines[0])
    assert list(its) == [name.lower().replace("-", "_") for name in (last, first)]
    document = json.loads(hosting.run(*words, *asked, "-J").stdout)
    value = the_value(document)
    assert (value[0] if isinstance(value, list) else value) == its
    assert hosting.run(*words, *asked).lines[0].startswith((last, f" {first}", first))
    assert hosting.run(*words, "-O", "-o", first) == hosting.run(*words, "-O")


@each([("-o", "nmae"), ("-o", "+zzz"), ("-o", "json"), ("-o", ""), ("-o", "\x1b[2J")])
def test_what_is_no_column_is_a_usage_error(hosting: Machine, words: tuple[str, ...]) -> None:
    ran = hosting.run(*words)
    assert (ran.status, ran.stdout) == (2, "")
    assert ("-J" if words[-1] == "json" else "the columns are") in ran.stderr
    assert "\x1b" not in ran.stderr


def test_a_plus_adds_a_column(hosting: Machine) -> None:
    usual = hosting.run("pmu", "list", "--format", "csv").lines[0]
    assert hosting.run("pmu", "list", "-o", "+midr", "--format", "csv").lines[0] == f"{usual},MIDR"


@each([(), ("-O",)])
def test_nothing_is_cut_off_or_wrapped_in_a_pipe(hosting: Machine, words: tuple[str, ...]) -> None:
    plain = hosting.run(*words)
    out = io.StringIO()
    wild = {"COLUMNS": "10", "FORCE_COLOR": "1", "TERM": "xterm-256color", "CLICOLOR_FORCE": "1"}
    assert main(words, hosting.env(out, io.StringIO(), environ=wild)) == 0
    assert out.getvalue() == plain.stdout
    assert "…" not in plain.stdout
    assert "\x1b" not in plain.stdout


class Terminal:
    """A terminal that commands write to."""

    def __init__(self, machine: Machine, width: int) -> None:
        self.machine = machine
        self.parent, child = pty.openpty()
        attributes = termios.tcgetattr(child)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(child, termios.TCSANOW, attributes)
        termios.tcsetwinsize(child, (25, width))
        self.out = open(child, "w", encoding="utf-8")

    def run(self, *words: str, **environ: str) -> str:
        """What one command writes, which must be less than a terminal holds (4 KiB)."""
        env = self.machine.env(self.out, io.StringIO(), environ={"TERM": "xterm", **environ})
        status = main(words, env)
        assert status == 0
        self.out.write("\0")
        self.out.flush()
        data = b""
        while not data.endswith(b"\0"):
            data += os.read(self.parent, 1 << 16)
        return data[:-1].decode()

    def close(self) -> None:
        self.out.close()
        os.close(self.parent)


@pytest.fixture
def terminal(hosting: Machine) -> Iterator[Callable[[int], Terminal]]:
    """Opens a terminal of a width."""
    opened: list[Terminal] = []

    def open_one(width: int) -> Terminal:
        opened.append(Terminal(hosting, width))
        return opened[-1]

    yield open_one
    for its in opened:
        its.close()


def bare(text: str) -> list[str]:
    """The lines of what was written to a terminal, without the codes for bold."""
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


@pytest.mark.parametrize("width", [40, 60, 80])
@pytest.mark.parametrize("command", LISTS)
def test_a_list_fits_a_terminal_or_is_whole(
    hosting: Machine, terminal: Callable[[int], Terminal], command: str, width: int
) -> None:
    hosting.run("vm", "set", "web1", "pmu", A72)
    lines = bare(terminal(width).run(*command.split()))
    whole = hosting.run(*command.split()).lines
    assert len(lines) == len(whole)
    assert all(line.split()[0] in text for line, text in zip(whole, lines, strict=True))
    if any("…" in line for line in lines):
        assert max(map(len, lines)) <= width
    else:
        assert [line.rstrip() for line in lines] == whole
    assert bare(terminal(width).run(*command.split(), "--no-truncate")) == whole


def test_the_width_is_that_of_the_terminal_that_is_written_to(
    terminal: Callable[[int], Terminal],
) -> None:
    words = ("vm", "list", "-o", "name,rules,uuid,socket")
    for width in (70, 110):
        lines = bare(terminal(width).run(*words))
        assert max(map(len, lines)) == width
    assert max(map(len, bare(terminal(110).run(*words, COLUMNS="70")))) == 70
    for nonsense in ("0", "", "wide", "-5", "٣"):
        assert max(map(len, bare(terminal(110).run(*words, COLUMNS=nonsense)))) == 110
    assert max(map(len, bare(terminal(110).run(*words, TERM="dumb")))) == 110
    assert max(map(len, bare(terminal(0).run(*words)))) == 80


@pytest.mark.parametrize(
    ("options", "environ", "bold"),
    [
        ((), {}, True),
        ((), {"NO_COLOR": "1"}, False),
        ((), {"NO_COLOR": ""}, True),
        ((), {"TERM": "dumb"}, False),
        ((), {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (("--color", "never"), {}, False),
        (("--color", "never"), {"FORCE_COLOR": "1"}, False),
        (("--color", "always"), {"NO_COLOR": "1"}, True),
        (("--color", "always"), {"TERM": "dumb"}, True),
        (("--color", "auto"), {}, True),
        (("--color", "always", "--no-truncate"), {}, True),
        (("--format", "csv"), {}, False),
        (("--format", "csv", "--color", "always"), {}, False),
        (("-J", "--color", "always"), {}, False),
        (("-n",), {}, False),
    ],
)
def test_when_headings_are_bold_on_a_terminal(
    terminal: Callable[[int], Terminal],
    monkeypatch: pytest.MonkeyPatch,
    options: tuple[str, ...],
    environ: Mapping[str, str],
    bold: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)  # rich reads the process's own
    text = terminal(100).run("pmu", "list", *options, **environ)
    assert ("\x1b[1m" in text) is bold
    if not bold:
        assert "\x1b" not in text


def test_colour_in_a_pipe_only_if_asked_for(machine: Machine) -> None:
    plain = machine.run("pmu", "list").stdout
    assert "\x1b" not in plain
    coloured = machine.run("pmu", "list", "--color", "always").stdout
    assert coloured.startswith("\x1b[1mNAME")
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == plain


@contextmanager
def broken(kind: str) -> Iterator[TextIO]:
    """An output that fails: a full disk, a pipe nobody reads, or one that may not be written."""
    if kind == "pipe":
        read, write = os.pipe()
        os.close(read)
        out = open(write, "w")
    elif kind == "full":
        out = open("/dev/full", "w")
    else:
        out = open(os.open(os.devnull, os.O_RDONLY), "w")
    try:
        yield out
    finally:
        with suppress(OSError):
            out.close()


@each(OPTIONS)
def test_an_output_that_fails_has_its_status(hosting: Machine, words: tuple[str, ...]) -> None:
    for kind, status in (("pipe", 141), ("full", 74), ("closed", 74)):
        err = io.StringIO()
        with broken(kind) as out:
            assert main(words, hosting.env(out, err)) == status
        told = err.getvalue()
        if kind == "pipe":
            assert told == ""
        elif words[-1] in ("-J", "json", "jsonl"):
            error = json.loads(told)["error"]
            assert (error["code"], error["exit"]) == ("output", 74)
        else:
            assert told.startswith("error: the result could not be written")


@each([(), ("-J",), ("-v",)])
def test_a_broken_stderr_changes_no_result(hosting: Machine, words: tuple[str, ...]) -> None:
    whole = hosting.run(*words).stdout
    for kind in ("pipe", "full", "closed"):
        out = io.StringIO()
        with broken(kind) as err:
            assert main(words, hosting.env(out, err)) == 0
            assert main((*words, "--nothing"), hosting.env(io.StringIO(), err)) == 2
        assert out.getvalue() == whole


@pytest.mark.parametrize(
    ("shut", "status"), [((1,), 74), ((2,), 0), ((1, 2), 74), ((0, 1, 2), 74), ((0,), 0)]
)
def test_streams_closed_from_outside(
    dump: Callable[[str], Path], shut: tuple[int, ...], status: int
) -> None:
    closing = " ".join(f"{fd}>&-" for fd in shut)
    words = ("pmu", "list", "--sysroot", str(dump("one-pmu")))
    ran = subprocess.run(
        ["/bin/sh", "-c", f'exec "$@" {closing}', "sh", *PMUCTL, *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == status
    assert "Traceback" not in ran.stderr
    if status == 0:
        assert len(ran.stdout.splitlines()) == 2
    elif 2 not in shut:
        assert ran.stderr.startswith("error: the result could not be written")


@each([()])
def test_quiet_and_verbose_leave_the_result_alone(
    hosting: Machine, words: tuple[str, ...]
) -> None:
    usual = hosting.run(*words)
    quiet = hosting.run(*words, "-q")
    assert (quiet.status, quiet.stdout, quiet.stderr) == (0, usual.stdout, "")
    verbose = hosting.run(*words, "-v")
    assert (verbose.status, verbose.stdout) == (0, usual.stdout)
    if words[0] == "vm":
        assert "web1 <- query-pmu {}" in verbose.stderr
    elif words[0] == "pmu":
        assert verbose.stderr == "7 event sources, listed by sysfs\n"


def test_quiet_keeps_errors_and_drops_warnings(machine: Machine) -> None:
    machine.start(FakeVm("web2"), machine.runtime / "web1.sock")  # answers to another name
    assert "warning: web1: " in machine.run("vm", "list").stderr
    assert json.loads(machine.run("vm", "list", "-J").stderr)["warning"]["object"] == "web1"
    assert machine.run("vm", "list", "-q").stderr == ""
    ran = machine.run("vm", "show", "web1", "-q")
    assert ran.status == 9
    assert ran.stderr.startswith("error: web1: ")


CLASSES = [
    cls
    for _, cls in inspect.getmembers(errors, inspect.isclass)
    if issubclass(cls, PmuctlError) and cls not in (PmuctlError, WrongWordError)
]
"""All but WrongWordError, which makes its own fix and has a test of its own."""


@pytest.mark.parametrize("cls", CLASSES)
def test_each_error_ends_with_its_status_and_as_json(
    machine: Machine, cls: type[PmuctlError]
) -> None:
    class Failing(Sysfs):
        def entries(self, path: str, *, most: int = 0) -> list[str]:
            raise cls("it failed", subject="x", why="because", fix="do this")

    def run(*words: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        env = machine.env(out, err, sysfs=Failing(machine.root))
        return main(words, env), out.getvalue(), err.getvalue()

    assert run("pmu", "list") == (
        int(cls.status),
        "",
        "error: x: it failed\n  why: because\n  fix: do this\n",
    )
    for words in (("-J",), ("--json",), ("--format", "json"), ("--format=jsonl",), ("-nJ",)):
        status, out, err = run("pmu", "list", *words)
        assert (status, out) == (int(cls.status), "")
        error = json.loads(err)["error"]
        assert (error["exit"], error["code"]) == (status, cls.status.name.lower())
        assert (error["object"], error["message"]) == ("x", "it failed")


def test_a_wrong_word_ends_with_the_line_to_type_and_as_json(machine: Machine) -> None:
    class Failing(Sysfs):
        def entries(self, path: str, *, most: int = 0) -> list[str]:
            raise WrongWordError("it failed", words=("this",), right=("th at",), why="because")

    def run(*words: str) -> tuple[int, str, str]:
        out, err = io.StringIO(), io.StringIO()
        env = machine.env(out, err, sysfs=Failing(machine.root))
        return main(words, env), out.getvalue(), err.getvalue()

    line = "pmuctl pmu show 'th at'"
    told = f"error: it failed\n  why: because\n  fix: {line}\n"
    assert run("pmu", "show", "this") == (2, "", told)
    for words in (("-J",), ("--json",), ("--format", "json"), ("--format=jsonl",), ("-nJ",)):
        status, out, err = run("pmu", "show", "this", *words)
        assert (status, out) == (2, "")
        error = json.loads(err)["error"]
        assert (error["exit"], error["code"]) == (2, "usage")
        assert (error["message"], error["why"]) == ("it failed", "because")
        assert error["fix"] == " ".join((line, *words))
    # a word that is not on the command line leaves what the error says itself
    assert run("pmu", "list")[2].endswith("  fix: write th at\n")


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        (("pmu", "list", "--nothing"), 2, "usage"),
        (("pmu", "lst"), 2, "usage"),
        (("pmu", "list", "--format", "xml"), 2, "usage"),
        (("pmu", "show", "nothing"), 4, "not_found"),
        (("pmu", "show", "software"), 4, "not_found"),
        (("pmu", "show", "armv8*"), 2, "usage"),
        (("vm", "show", "nothing"), 4, "not_found"),
        (("vm", "show", "a/b"), 2, "usage"),
        (("vm", "set", "web1", "counters", "32"), 2, "usage"),
        (("host", "capabilities", "nothing"), 2, "usage"),
    ],
)
def test_errors_of_every_origin_are_json_with_j(
    hosting: Machine, words: tuple[str, ...], status: int, code: str
) -> None:
    ran = hosting.run(*words, "-J")
    assert (ran.status, ran.stdout) == (status, "")
    error = json.loads(ran.stderr)["error"]
    assert (error["exit"], error["code"]) == (status, code)
    assert list(error) == ["code", "exit", "object", "errno", "message", "why", "now", "fix"]
    assert hosting.run(*words).stderr.startswith("error: ")


def test_what_follows_two_dashes_is_no_option(machine: Machine) -> None:
    ran = machine.run("pmu", "show", "--", "-J")
    assert ran.status == 4
    assert ran.stderr.startswith("error: -J: no such PMU")


def test_a_guarded_stream_is_as_the_one_behind_it() -> None:
    with open(os.devnull, "w") as file:
        stream = guarded(file)
        assert (stream.isatty(), stream.fileno(), stream.encoding) == (
            file.isatty(),
            file.fileno(),
            file.encoding,
        )
