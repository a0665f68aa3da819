# SPDX-License-Identifier: Apache-2.0
"""What users post finds its answer, and what is about something else finds none."""

from functools import cache
from pathlib import Path

import pytest

from pmuctl.model.cpuset import CpuSet
from pmuctl.model.symptoms.host import SymptomHost
from pmuctl.model.symptoms.matcher import match_symptoms

ROCKCHIP = SymptomHost(core_kinds=2, kernel=(6, 1), has_vpmu=True)
"""A board of two kinds of core with its vendor's kernel."""
BIG_LITTLE = SymptomHost(core_kinds=2, kernel=(6, 12), has_vpmu=True)
SERVER = SymptomHost(core_kinds=1, kernel=(6, 12), has_vpmu=True)
OLD_SERVER = SymptomHost(core_kinds=1, kernel=(5, 10))
NO_VPMU = SymptomHost(core_kinds=2, kernel=(6, 12), has_vpmu=False)
HOSTS = (None, ROCKCHIP, BIG_LITTLE, SERVER, OLD_SERVER, NO_VPMU)

FOLDER = Path(__file__).parent


def ids(text: str, host: SymptomHost | None = None) -> list[str]:
    return list(_ids(text, host))


@cache
def _ids(text: str, host: SymptomHost | None) -> tuple[str, ...]:
    """What is posted is asked of each host by several tests."""
    return tuple(each.id for each in match_symptoms(text, host))


def read_cases(name: str) -> list[str]:
    """Return the messages of a file, which are separated by lines of "---"."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    return [case.strip("\n") for case in text.split("\n---\n")]


def read_posted() -> list[tuple[str, str]]:
    """Return the answer that each posted message has to find, and the message."""
    cases = [case.split("\n", 1) for case in read_cases("posted.txt")]
    return [(id, text) for id, text in cases]


@pytest.mark.parametrize(("id", "text"), read_posted())
def test_what_users_post_is_answered(id: str, text: str) -> None:
    """The first answer where nothing is known of the host; on all hosts it is among them."""
    assert ids(text)[:1] == [id]
    assert [host for host in HOSTS if id not in ids(text, host)] == []


@pytest.mark.parametrize(("id", "text"), read_posted())
def test_upper_case_quotes_time_stamps_and_line_breaks_do_not_count(id: str, text: str) -> None:
    assert id in ids(text.upper())
    assert id in ids(f"> `{text}`")
    stamped = "\n".join(f"Jun 03 12:00:01 host1 app[4711]: {line}" for line in text.splitlines())
    assert id in ids(stamped)
    words = text.replace("' ", "'\n").split(" ")
    half = len(words) // 2
    assert id in ids(" ".join(words[:half]) + "\n" + " ".join(words[half:]))


@pytest.mark.parametrize(("id", "text"), read_posted())
def test_a_message_is_found_in_a_long_log(id: str, text: str) -> None:
    before = "systemd[1]: Started Session 4 of user root.\nEXT4-fs (vda1): mounted filesystem\n"
    assert id in ids(before * 10 + text + "\nsystemd[1]: Reached target Sound Card.\n" * 10)


@pytest.mark.parametrize("text", read_cases("innocent.txt"))
def test_a_message_about_something_else_is_no_symptom(text: str) -> None:
    assert [ids(text, host) for host in HOSTS] == [[]] * len(HOSTS)


@pytest.mark.parametrize("text", ["", "  ", "the", "0x2", "\n", "---", "¡", "\x00"])
def test_no_words_are_no_symptom(text: str) -> None:
    assert ids(text) == []


def test_a_part_of_what_is_seen_will_do() -> None:
    assert ids("crosvm") == ["crosvm-fail-entry"]
    assert {"qemu-spins", "qemu-init-vcpu"} <= set(ids("qemu"))
    assert ids("busy") == ids("EBUSY") == ["pmu-busy", "kvmtool-pmu-busy"]
    assert ids("ENOSYS") == ["supervisor-gone"]


PUT = "qemu-system-aarch64: Failed to put registers after init: Invalid argument"
PSCI = "psci: failed to boot CPU1 (-22)"
INIT = "kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument"
PERF = "<not supported> cycles"


@pytest.mark.parametrize(
    ("text", "host", "first"),
    [
        (PUT, ROCKCHIP, "cache-registers"),
        (PUT, BIG_LITTLE, "qemu-init-vcpu"),
        (PUT, SERVER, "qemu-cpu-model"),
        (PUT, OLD_SERVER, "qemu-cpu-model"),
        (INIT, ROCKCHIP, "cache-registers"),
        (INIT, BIG_LITTLE, "qemu-init-vcpu"),
        (INIT, SERVER, "qemu-cpu-model"),
        (PSCI, ROCKCHIP, "cache-registers"),
        (PSCI, BIG_LITTLE, "several-core-kinds"),
        (PSCI, SERVER, "guest-lacks-cpus"),
        (PERF, BIG_LITTLE, "guest-has-no-pmu"),
        (PERF, NO_VPMU, "no-vpmu"),
        ("<not counted> cycles", BIG_LITTLE, "guest-counts-nothing"),
        (PERF, SERVER, "guest-has-no-pmu"),
        ("perf in the guest says not supported", NO_VPMU, "no-vpmu"),
        ("vCPU init failed: Invalid argument", NO_VPMU, "no-vpmu"),
    ],
)
def test_the_likeliest_on_this_host_comes_first(text: str, host: SymptomHost, first: str) -> None:
    assert ids(text, host)[0] == first


@pytest.mark.parametrize("text", [PUT, PSCI, INIT, "vCPU init: EINVAL", "vm only sees one cpu"])
@pytest.mark.parametrize("host", [SERVER, OLD_SERVER])
def test_with_one_kind_of_core_several_kinds_come_last(text: str, host: SymptomHost) -> None:
    assert ids(text, host)[-1] in ("qemu-init-vcpu", "several-core-kinds")


@pytest.mark.parametrize("text", [text for _, text in read_posted()])
def test_a_host_ranks_and_never_drops(text: str) -> None:
    assert {frozenset(ids(text, host)) for host in HOSTS} == {frozenset(ids(text))}


@pytest.mark.parametrize(
    ("text", "only"),
    [
        ("kvm_init_vcpu failed: Function not implemented", ["supervisor-gone"]),
        ("kvm_arch_init_vcpu failed: Cannot allocate memory", []),
        ("kvm_arm_vcpu_init failed: No such device", ["no-vpmu"]),
        ("error: kvm run failed Bad address", []),
        ("psci: failed to boot CPU1 (-95)", []),
        ("taskset: failed to set pid 7's affinity: Operation not permitted", []),
        ("KVM_CREATE_VCPU: Invalid argument", ["several-core-kinds"]),
    ],
)
def test_another_error_is_another_symptom(text: str, only: list[str]) -> None:
    assert ids(text) == only


def test_one_error_does_not_hide_another_in_the_same_log() -> None:
    log = "disk: No space left on device\nkvm_init_vcpu failed: Invalid argument"
    assert ids(log)[0] == "qemu-init-vcpu"


def test_the_line_before_proxmox_own_comes_first() -> None:
    text = f"kvm: Failed to put registers after init: Invalid argument\n{PROXMOX}"
    for host in HOSTS[:3]:
        assert ids(text, host)[-1] == "proxmox-start-failed"
    assert ids(PROXMOX) == ["proxmox-start-failed"]


@pytest.mark.parametrize("text", [f"qemu: {INIT}", INIT, "kvm_init_vcpu failed: Invalid argument"])
def test_qemu_asks_for_no_pmu_that_kvm_has_not(text: str) -> None:
    """kvm_arm_pmu_supported() comes first: without a vPMU another cause is behind it."""
    assert "no-vpmu" not in ids(text, NO_VPMU)


@pytest.mark.parametrize(
    ("kernel", "first"), [((6, 12), "no-vpmu"), ((6, 15), "guest-has-no-pmu")]
)
def test_kvm_has_no_pmu_for_guests_on_apples_cores_before_linux_6_15(
    kernel: tuple[int, int], first: str
) -> None:
    cpus = CpuSet.parse("0-3")
    apple = SymptomHost(core_kinds=1, kernel=kernel, pmus=(("apple_icestorm_pmu", cpus),))
    assert ids("<not supported> cycles", apple)[0] == first


def test_a_vmm_is_told_by_its_own_words_only_if_none_is_named() -> None:
    busy = "PMU KVM_SET_DEVICE_ATTR: Device or resource busy"
    assert ids(busy) == ["kvmtool-pmu-busy"]
    assert ids(f"crosvm: {busy}") == ids(busy.replace("PMU ", "PMU: ")) == ["pmu-busy"]


PROXMOX = "TASK ERROR: start failed: QEMU exited with code 1"


@pytest.mark.parametrize(
    ("text", "id"),
    [
        ("Received KVM_EXIT_FAIL_ENTRY signal", "fail-entry"),
        ("firecracker: Received KVM_EXIT_FAIL_ENTRY signal", "fail-entry"),
        ("libkrun: VcpuExit::FailEntry(1, 4)", "fail-entry"),
        ("lkvm: KVM_EXIT_FAIL_ENTRY", "kvmtool-fail-entry"),
        ("cloud-hypervisor: FailEntry(1, 2)", "cloud-hypervisor-fail-entry"),
        ("crosvm: FailEntry { hardware_entry_failure_reason: 1, cpu: 2 }", "crosvm-fail-entry"),
        ("cloud-hypervisor: the guest hangs at boot", "cloud-hypervisor-fail-entry"),
    ],
)
def test_the_answer_is_that_of_the_vmm_in_the_text(text: str, id: str) -> None:
    assert ids(text) == [id]


@pytest.mark.parametrize("host", HOSTS)
def test_a_cpu_model_that_qemu_names_is_the_only_cause(host: SymptomHost | None) -> None:
    log = f"qemu-system-aarch64: KVM is not supported for this guest CPU type\nqemu: {INIT}"
    assert ids(log, host) == ["qemu-cpu-model"]
