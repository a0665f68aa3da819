# SPDX-License-Identifier: Apache-2.0
"""What --help of a command says beside its options: columns, examples and the manual page."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

from pmuctl.cli.options import Options
from pmuctl.render.table import wrap
from pmuctl.value import field_defaults

COLUMNS = {
    "host info": "host.HOST_COLUMNS",
    "host capabilities": "host.CAPABILITY_COLUMNS",
    "pmu list": "pmu.PMU_COLUMNS",
    "pmu show": "pmu.PMU_COLUMNS",
    "pmu cpus": "pmu.CPU_COLUMNS",
    "vm list": "vm.VM_COLUMNS",
    "vm show": "vm.VM_COLUMNS",
    "vm vcpus": "vcpu.VCPU_COLUMNS",
    "vm set": "reports.CHANGE_COLUMNS",
    "vm release": "reports.CHANGE_COLUMNS",
    "affinity set": "affinity.AFFINITY_COLUMNS",
    "affinity align": "affinity.AFFINITY_COLUMNS",
    "affinity check": "affinity.CHECK_COLUMNS",
    "conformance": "reports.CONFORMANCE_COLUMNS",
    "doctor": "reports.DOCTOR_COLUMNS",
    "monitor": "events.EVENT_COLUMNS",
}
"""Command → its columns, below pmuctl.render."""

EXAMPLES: Mapping[str, tuple[str, str]] = {
    "host info": ("pmuctl host info", "pmuctl host info -o KERNEL,KVM,PMUS"),
    "host capabilities": ("pmuctl host capabilities", "pmuctl host capabilities SET_PMU FILTER"),
    "host snapshot": ("pmuctl host snapshot ./host", "pmuctl vm list --sysroot ./host"),
    "pmu list": ("pmuctl pmu list", "pmuctl pmu list core/cortex-a72 -J"),
    "pmu show": ("pmuctl pmu show armv8_cortex_a72", "pmuctl pmu show cpus/2-3"),
    "pmu cpus": ("pmuctl pmu cpus", "pmuctl pmu cpus 0-3 -o +MIDR"),
    "vm list": ("pmuctl vm list", "pmuctl vm list -o NAME,PMU,ALIGNED,MEANS"),
    "vm show": ("pmuctl vm show web1", "pmuctl vm show pid/4121 -J"),
    "vm vcpus": ("pmuctl vm vcpus", "pmuctl vm vcpus web1 -o VCPU,TID,AFFINITY"),
    "vm wait": (
        "pmuctl vm wait web1 --for open",
        "pmuctl vm wait web1 --for running --timeout 60",
    ),
    "vm set": (
        "pmuctl vm set web1 pmu core/cortex-a72 filter default deny allow cpu_cycles",
        "pmuctl vm set web1 affinity 2-3 --dry-run",
    ),
    "vm release": ("pmuctl vm release web1", "pmuctl vm release web1 --dry-run"),
    "affinity set": ("pmuctl affinity set web1 2-3", "pmuctl affinity set web1 3 --vcpu 1"),
    "affinity align": ("pmuctl affinity align web1", "pmuctl affinity align --all --dry-run"),
    "affinity check": ("pmuctl affinity check", "pmuctl affinity check --managed --strict -q"),
    "completion": ("pmuctl completion bash", "pmuctl completion zsh"),
    "conformance": (
        "pmuctl conformance ./vm.sock",
        "pmuctl conformance ./vm.sock -o CHECK,RESULT",
    ),
    "doctor": ("pmuctl doctor", "pmuctl doctor --symptom 'kvm_init_vcpu failed'"),
    "help": ("pmuctl help", "pmuctl help vm set"),
    "monitor": ("pmuctl monitor", "pmuctl monitor web1 --repair --format jsonl"),
    "run": (
        "pmuctl run --name web1 --hold -- qemu-system-aarch64 -cpu host -accel kvm",
        "pmuctl run --pmu core/cortex-a72 -- lkvm run --kernel Image",
    ),
}
"""Command → two command lines that show what it is for."""

PAGES = {"help": "pmuctl(1)"}
"""Command without a manual page of its own → the one that describes it."""


INDENT = "  "


def _write_section(heading: str, text: str, formatter: Any) -> None:
    """Write a text that begins beside its heading; no word is broken, also not at a hyphen."""
    lines = wrap(f"{heading}: {text}", INDENT, formatter.width).removeprefix(INDENT)
    formatter.write(f"\n{lines}\n")


def write_options(params: Sequence[Any], ctx: Any, formatter: Any) -> None:
    """Write the arguments and the command's own options in full, shared options by name only.

    The shared options are those of `Options`: they are described in pmuctl(1), and would take the
    rest of the screen.
    """
    common = field_defaults(Options)
    arguments: list[tuple[str, str]] = []
    own: list[tuple[str, str]] = []
    shared: list[str] = []
    for param in params:
        record = param.get_help_record(ctx)
        if record is None:
            continue
        if param.param_type_name == "argument":
            arguments.append(record)
        elif param.name == "help":  # whoever reads this knows it
            continue
        elif param.name in common:
            shared.append(record[0].replace(", ", "/"))
        else:
            own.append(record)
    for heading, records in (("Arguments", arguments), ("Options", own)):
        if records:
            with formatter.section(heading):
                formatter.write_dl(records)
    if shared:
        _write_section("Common options, pmuctl(1)", ", ".join(shared), formatter)


def write_more(command: str, formatter: Any) -> None:
    """Write the columns of a command, two examples, and the name of its manual page."""
    if command in COLUMNS:
        module, _, name = COLUMNS[command].partition(".")
        columns = getattr(import_module(f"pmuctl.render.{module}"), name)
        names = " ".join(column.name for column in columns)
        _write_section("Columns, for -o", names, formatter)
    page = PAGES.get(command) or f"pmuctl-{command.partition(' ')[0]}(1)"
    formatter.write(f"\nExamples, more in {page}:\n")
    for line in EXAMPLES[command]:
        formatter.write(f"{INDENT}{line}\n")
