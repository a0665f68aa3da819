# SPDX-License-Identifier: Apache-2.0
"""A symptom: what its message says, what is behind it, and what fixes it."""

from collections.abc import Mapping

from pmuctl.model.symptoms.host import HostTrait
from pmuctl.model.symptoms.vmms import NamedVmm
from pmuctl.value import field, value


@value(kw_only=True)
class Symptom:
    """What users of `by` see (`seen`), what it `means`, how to `check` it and how to `fix` it.

    A message shows it if it has all words of one entry of `words`. With all words of one entry of
    `may` the symptom may be behind the message, but others are likelier. In an entry "a|b" is
    either word, and a word in capitals is an error or a phrase of `words.py`. No entry counts
    beside all words of one entry of `unless`. `errors` are the errors that the message can end
    with: if it has only others, it is another symptom's. None stands for all.

    A symptom of one `vmm` is not shown to users of another. `general` is the symptom of any VMM
    which need not be shown beside this one. The answer of the highest `rank` comes first, and
    `likely` adds to the rank on hosts with a trait.

    `means`, `check` and `fix` can have {vmm}, what the message calls it, and of it {command},
    {with_pmu}, {without_pmu}, {with_gic}; {start}, the command that starts a VM on the CPUs of
    one PMU, and {slice}, the systemd slice that it is in; and of the host {pmu}, the {cpus} of
    that PMU, and the {online} CPUs.
    """

    id: str
    by: str
    seen: str
    words: tuple[str, ...]
    may: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    errors: tuple[str, ...] | None = None
    vmm: NamedVmm | None = None
    general: str | None = None
    rank: int = 0
    likely: Mapping[HostTrait, int] = field(default_factory=dict)
    means: str
    check: str
    fix: str


AFFINITY_CHECK, ALIGN = "pmuctl affinity check", "pmuctl affinity align --all"

SECOND_CPU_FAILS = ("psci fail|EINVAL boot|start cpu|vcpu", "cpu fail boot EINVAL")
ONE_CPU = (
    "guest only|just|no one cpu|core|vcpu",
    "guest one cpu|core|vcpu see|visible|online|appear|show",
    "guest secondary|second|other|rest cpu|core|vcpu no|fail|gone start|boot|come|run|online",
    "guest only cpu|core|vcpu boot|come|came|up|online|start|visible",
    "guest nproc one",
    "cpu fail come online",
)
"""The guest does not get all of its CPUs: for several reasons."""
