# SPDX-License-Identifier: Apache-2.0
"""pmuctl's probes find out what each host is, and keep it for the boot."""

import json
from contextlib import ExitStack

import pytest

from pmuctl.host.kvm.cache import CAPS
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.kvm_caps import DefaultPmu, KvmCaps
from pmuctl.uapi.kvm_arm64 import KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS
from tests.lab.conftest import GetLab
from tests.lab.machine import Lab
from tests.lab.runs import shell
from tests.lab.sequences import is_default_of_maker

CACHE = "/run/pmuctl/kvm-probe.json"
CPUS = {
    "one": ["0-3"],
    "two": ["0-1", "2-3"],
    "three": ["0-1", "2", "3"],
    "gap": ["0-1", "2"],
    "a72": ["0-1", "2-3"],
}


def probe(lab: Lab, user: str | None = None) -> KvmCaps:
    command = ["python3", "-m", "tests.lab.probe"]
    ran = lab.run(command, check=True, preloaded=user is None, user=user)
    probed: KvmCaps = CAPS.read(json.loads(ran.stdout), "probed")
    return probed


@pytest.fixture
def fresh(get_lab: GetLab, kernel: str, host: str) -> Lab:
    """A lab in which nothing was probed yet."""
    lab = get_lab(kernel, host)
    lab.run(["rm", "-rf", "/run/pmuctl"], check=True)
    return lab


@pytest.mark.parametrize("host", CPUS)
def test_every_pmu_has_its_cpus_counters_and_event_space(fresh: Lab, host: str) -> None:
    probed = probe(fresh)
    assert probed.has_vpmu
    assert sorted(map(str, probed.cpus.values())) == sorted(CPUS[host])
    assert [*probed.counters.values()] == [6] * len(CPUS[host])
    assert probed.event_bits == (10 if host == "a72" else 16)
    assert probed.event_bits_of == {}


@pytest.mark.parametrize("host", ["none"])
def test_a_host_without_pmu_says_so(fresh: Lab) -> None:
    assert probe(fresh) == KvmCaps(has_vpmu=False)


@pytest.mark.parametrize("host", ["two", "three", "gap"])
def test_the_default_pmu_is_chosen_as_measured(fresh: Lab, kernel: str) -> None:
    """As seen in what a guest counts: at KVM_ARM_VCPU_INIT, or always the first PMU."""
    probed = probe(fresh)
    if is_default_of_maker(kernel):
        assert (probed.default, probed.default_pmu) == (DefaultPmu.AT_VCPU_INIT, None)
    else:
        assert (probed.default, probed.default_pmu) == (DefaultPmu.ONE, min(probed.counters))


@pytest.mark.parametrize("host", ["one"])
def test_one_pmu_is_the_default_whatever_the_rule(fresh: Lab) -> None:
    probed = probe(fresh)
    assert (probed.default, probed.default_pmu) == (DefaultPmu.ONE, *probed.counters)


@pytest.mark.parametrize("host", ["two"])
def test_counters_are_found_with_and_without_set_nr_counters(fresh: Lab) -> None:
    """Where there is the attribute, PMCR_EL0.N says the same."""
    probed = probe(fresh)
    code = (
        "from pmuctl.host.kvm.device import *; from pmuctl.host.kvm.probes import *;"
        f"pmu = {min(probed.counters)}\n"
        "with scratch_vcpu() as vcpu:\n"
        "    set_pmu_attr(vcpu, 3, pack_pmu(pmu))\n"
        "    print(get_sys_reg(vcpu, PMCR_EL0) >> 11 & 31, probe_counters_limit(pmu))\n"
    )
    register, limit = fresh.run(["python3", "-c", code], check=True).stdout.split()
    has_it = KVM_ARM_VCPU_PMU_V3_SET_NR_COUNTERS in probed.attributes
    assert register == "6"
    assert limit == ("6" if has_it else "None")


@pytest.mark.parametrize("host", ["two"])
def test_it_is_probed_once_a_boot_and_read_by_all(fresh: Lab) -> None:
    first = probe(fresh)
    assert fresh.run(["stat", "-c", "%a %u %F", CACHE]).stdout == "644 0 regular file\n"
    before = fresh.run(["stat", "-c", "%i", CACHE]).stdout
    assert probe(fresh) == first
    # one who may not open /dev/kvm cannot have probed
    assert probe(fresh, user="1001:1001") == first
    assert fresh.run(["stat", "-c", "%i", CACHE]).stdout == before
    fresh.run(["rm", CACHE], check=True)
    assert probe(fresh, user="1001:1001") == KvmCaps(has_vpmu=None)


@pytest.mark.parametrize("host", ["two"])
def test_a_probe_from_one_cpu_only_moves_and_comes_back(fresh: Lab) -> None:
    code = (
        "import os; from tests.lab.probe import main\n"
        "os.sched_setaffinity(0, [3])\nmain()\nprint(os.sched_getaffinity(0))"
    )
    lines = fresh.run(["python3", "-c", code], check=True).stdout.splitlines()
    assert CAPS.read(json.loads(lines[0]), "probed").default is not None
    assert lines[1] == "{3}"
    assert {str(cpus) for cpus in probe(fresh).cpus.values()} == {
        str(CpuSet.parse(cpus)) for cpus in CPUS["two"]
    }


@pytest.mark.parametrize("host", ["two", "gap"])
def test_what_one_pmu_alone_would_tell_is_not_kept_for_the_boot(fresh: Lab) -> None:
    """With all other CPUs offline, every VM gets the same PMU, however KVM chooses."""
    path = "/sys/devices/system/cpu/cpu{}/online"
    with ExitStack() as stack:
        for cpu in (2, 3):
            shell(fresh, f"echo 0 >{path.format(cpu)}")
            stack.callback(shell, fresh, f"echo 1 >{path.format(cpu)}")
        probed = probe(fresh)
        assert (probed.default, probed.default_pmu) == (None, None)
        assert fresh.run(["test", "-e", CACHE]).status == 1
    assert probe(fresh).default is not None
    assert fresh.run(["test", "-e", CACHE]).status == 0
