# SPDX-License-Identifier: Apache-2.0
"""Which modules each command loads: imports are most of what a short command costs."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CODE = """
import sys
from pmuctl.cli.context import live_context
from pmuctl.cli.main import main
status = main(sys.argv[1:], live_context(sys.stdout, sys.stderr))
print(status, *sorted(sys.modules), file=sys.stderr)
"""

ROOT = Path(__file__).parents[1]

NEVER = {"pydantic", "pygments", "asyncio", "pyudev", "hypothesis", "ctypes", "concurrent"}
"""With --sysroot; the live machine's udev is asked through pyudev, and KVM through ctypes."""

OURS = {
    ("--help",): {"cli.app", "cli.options"},
    ("pmu", "list"): {"cli.pmu", "host.pmus", "host.sysfs", "host.cpus", "model.pmu_selector"},
    ("pmu", "show", "*a72"): {"cli.pmu", "host.pmus", "model.pmu_selector"},
    ("pmu", "cpus"): {"cli.pmu", "manage.cpus", "render.pmu"},
    ("vm", "list"): {"cli.vm", "manage.inventory.inventory", "render.vm"},
    ("run", "--help"): {
        "cli.run",
        "manage.start.prepare",
        "manage.start.preflight",
        "launch.spec",
    },
}
"""Some of what each command does need: a list that is never held up is no pin."""

WITHOUT = {
    ("--help",): {"cli.pmu", "cli.vm", "cli.host", "host.pmus", "control", "manage", "model.pmu"},
    ("pmu", "list"): {
        "cli.vm",
        "cli.host",
        "control",
        "manage.host_info",
        "model.vpmu",
        "model.event_filter",
    },
    ("pmu", "show", "*a72"): {"cli.vm", "cli.host", "control", "manage.host_info", "model.vpmu"},
    ("pmu", "cpus"): {"cli.vm", "cli.host", "control", "manage.host_info", "host.kvm.probes"},
    ("vm", "list"): {
        "cli.settings_parser",
        "manage.affinity.set_and_align",
        "manage.settings.transaction",
        "model.plan",
        "model.vpmu",
    },
    ("run", "--help"): {
        "control.client.client",
        "control.client.qemu_monitor",
        "host.parallel",
        "launch.trace.tracer",
        "manage.inventory.processes",
        "manage.settings.transaction",
        "manage.affinity.host_state",
        "model.vm",
    },
}


OF_SUPERVISOR = {
    "contextlib",
    "ctypes",
    "enum",
    "fcntl",
    "fnmatch",
    "gc",
    "json",
    "pathlib",
    "selectors",
    "signal",
    "socket",
    "struct",
    "threading",
    "typing",
}
"""All it has of the standard library, but for what these load: traceback alone is 150 kB."""

WITHOUT_SUPERVISOR = {
    "cli",
    "render",
    "manage",
    "control.client.client",
    "control.client.qemu_monitor",
    "host.cpuset_cgroup",
    "host.snapshot_files",
    "host.kvm.probes",
    "launch.launcher",
    "model.host_diff",
    "model.pmu_selector",
    "model.symptoms",
    "model.vm",
}


def isolated(*names: str) -> set[str]:
    """What these load in an interpreter such as a supervisor is started in."""
    code = "import sys; root, *names = sys.argv[1:]; sys.path.insert(0, root)\n"
    code += "for name in names: __import__(name)\nprint(*sys.modules)"
    argv = [sys.executable, "-I", "-S", "-c", code, str(ROOT), *names]
    return set(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())


def loaded(*words: str) -> set[str]:
    ran = subprocess.run(
        [sys.executable, "-P", "-c", CODE, *words], capture_output=True, text=True, check=True
    )
    status, *modules = ran.stderr.splitlines()[-1].split()
    assert status == "0", ran.stderr
    return set(modules)


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_a_command_loads_what_it_needs_and_no_more(
    words: tuple[str, ...], dump: Callable[[str], Path]
) -> None:
    sysroot = () if "--help" in words else ("--sysroot", str(dump("two-pmus-6.12")))
    modules = loaded(*words, *sysroot)
    tops = {name.partition(".")[0] for name in modules}
    assert tops.isdisjoint({*NEVER, "rich"})
    assert {f"pmuctl.{name}" for name in OURS[words]} <= modules
    assert {f"pmuctl.{name}" for name in WITHOUT[words]} & modules == set()


def test_a_supervisor_loads_what_it_needs_and_no_more() -> None:
    """It stays for the life of a VM, so what it loads is memory that every VM costs."""
    modules = isolated("pmuctl.launch.__main__")
    ours = {name for name in modules if name.partition(".")[0] == "pmuctl"}
    assert OF_SUPERVISOR <= modules
    assert modules - ours <= isolated(*OF_SUPERVISOR)
    assert {
        "pmuctl.launch.supervisor",
        "pmuctl.control.server.server",
        "pmuctl.model.plan",
    } <= ours
    assert {f"pmuctl.{name}" for name in WITHOUT_SUPERVISOR}.isdisjoint(ours)


def test_json_loads_no_table_and_a_table_no_json(dump: Callable[[str], Path]) -> None:
    listing = ("pmu", "list", "--sysroot", str(dump("two-pmus-6.12")))
    assert "json" not in loaded(*listing)
    assert "csv" not in loaded(*listing)
    assert "rich" not in loaded(*listing, "-J")


def test_the_console_script_answers_scripts_and_tab_with_next_to_nothing() -> None:
    code = (
        "import sys, os; sys.argv = ['pmuctl', *sys.argv[1:]];"
        "os._exit = lambda _: (print(*sys.modules, file=sys.stderr), sys.exit(0));"
        "from pmuctl.cli.entry import run; run()"
    )
    for words in (["--version"], ["__complete", "events", "--socket=", "web1"]):
        ran = subprocess.run(
            [sys.executable, "-P", "-c", code, *words], capture_output=True, text=True, check=False
        )
        modules = set(ran.stderr.split())
        assert "pmuctl.cli.entry" in modules
        assert modules.isdisjoint({"typer", "enum", "re", "json", "dataclasses", "pathlib"})
