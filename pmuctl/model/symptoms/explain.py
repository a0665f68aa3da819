# SPDX-License-Identifier: Apache-2.0
"""Explanations of a message, in the words of its VMM and with commands that work on this host."""

from pmuctl.model.symptoms.host import SymptomHost
from pmuctl.model.symptoms.matcher import match_symptoms
from pmuctl.model.symptoms.symptom import Symptom
from pmuctl.model.symptoms.vmms import ANY_VMM, Manager, NamedVmm, find_manager, find_vmms
from pmuctl.value import value


@value(kw_only=True)
class Explanation:
    """One answer to a message: a symptom with what it means here, and commands to be typed.

    Words in capitals in `check` and `fix` have to be replaced.
    """

    id: str
    by: str
    seen: str
    means: str
    check: str
    fix: str


def explain(text: str, host: SymptomHost | None = None) -> list[Explanation]:
    """Return the explanations of a message on a host, the likeliest first.

    Return an empty list if no known symptom matches.
    """
    host = host or SymptomHost()
    vmms, manager = find_vmms(text), find_manager(text)
    return [
        _explain_symptom(symptom, vmms[0] if len(vmms) == 1 else None, manager, host)
        for symptom in match_symptoms(text, host)
    ]


def _explain_symptom(
    symptom: Symptom, named: NamedVmm | None, manager: Manager | None, host: SymptomHost
) -> Explanation:
    vmm = named or symptom.vmm or ANY_VMM
    pmu, cpus = _choose_pmu(host)
    words = {
        "vmm": vmm.name,
        "command": vmm.command,
        "with_pmu": vmm.with_pmu,
        "without_pmu": vmm.without_pmu,
        "with_gic": vmm.with_gic,
        "start": _start_on_one_pmu(vmm, manager, host),
        "pmu": pmu,
        "cpus": cpus,
        "slice": manager.slice if manager else "machine.slice",
        "online": str(host.online) if host.online else "CPUS",
    }
    return Explanation(
        id=symptom.id,
        by=symptom.by,
        seen=symptom.seen,
        means=symptom.means.format_map(words),
        check=symptom.check.format_map(words),
        fix=symptom.fix.format_map(words),
    )


def _choose_pmu(host: SymptomHost) -> tuple[str, str]:
    """Return the PMU to suggest and its online CPUs, or `PMU` and `CPUS` if none is known."""
    return next(((name, str(cpus)) for name, cpus in host.pmus if cpus), ("PMU", "CPUS"))


def _start_on_one_pmu(vmm: NamedVmm, manager: Manager | None, host: SymptomHost) -> str:
    """Return the command that has a VM start, and stay, on the CPUs of one PMU."""
    pmu, cpus = _choose_pmu(host)
    if manager is not None:
        return manager.pin.format(cpus=cpus)
    if host.may_set_pmu:
        return f"pmuctl run --pmu {pmu} -- {vmm.command}"
    return f"taskset -c {cpus} {vmm.command}"
