# SPDX-License-Identifier: Apache-2.0
"""What users see, and what pmuctl makes of it."""

import re

import pytest

from pmuctl.cli.app import NOUNS, VERBS
from pmuctl.model.symptoms import SYMPTOMS, match_symptoms


def ids(text: str) -> list[str]:
    return [its.id for its in match_symptoms(text)]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("[ERROR:src/crosvm/sys/linux/vcpu.rs:431] vcpu hw run failure: 0x1", "crosvm-fail-entry"),
        ("VCPU HW RUN FAILURE", "crosvm-fail-entry"),
        ('KVM exit reason: 9 ("KVM_EXIT_FAIL_ENTRY")', "kvmtool-fail-entry"),
        ("PMU KVM_SET_DEVICE_ATTR: Device or resource busy", "kvmtool-pmu-busy"),
        (
            "qemu-system-aarch64: kvm_init_vcpu: kvm_arch_init_vcpu failed (0): Invalid argument",
            "qemu-init-vcpu",
        ),
        ("kvm_init_vcpu Invalid argument", "qemu-init-vcpu"),
        ("perf stat says <not counted> in the guest", "guest-counts-nothing"),
        ("perf: no counts in guest", "guest-counts-nothing"),
        ("Windows: divide by zero in hal.dll", "windows-divide-by-zero"),
        ("QEMU takes 100 % CPU and is silent", "qemu-spins"),
        ("Unexpected exit reason on vcpu run: FailEntry(1, 0)", "cloud-hypervisor-fail-entry"),
    ],
)
def test_what_users_see(text: str, first: str) -> None:
    assert first in ids(text)


def test_a_part_of_what_is_seen_will_do() -> None:
    assert "crosvm-fail-entry" in ids("crosvm")
    assert {"qemu-spins", "qemu-init-vcpu"} <= set(ids("qemu"))


@pytest.mark.parametrize("text", ["", "  ", "the", "disk full", "no route to host", "0x2"])
def test_other_words_are_no_symptom(text: str) -> None:
    assert ids(text) == []


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda its: its.id)
def test_every_symptom_is_found_by_what_is_seen(symptom: object) -> None:
    assert symptom in match_symptoms(getattr(symptom, "seen", ""))


def test_the_table_is_whole() -> None:
    assert len({its.id for its in SYMPTOMS}) == len(SYMPTOMS)
    for its in SYMPTOMS:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", its.id)
        assert its.means[-1] != "."
        assert "  " not in its.means
        for command in (its.check, its.fix):
            words = command.split()
            assert words[0] == "pmuctl"
            assert words[1] in {**NOUNS, **VERBS}


def test_an_id_is_its_symptom() -> None:
    for its in SYMPTOMS:
        assert match_symptoms(its.id) == match_symptoms(f" {its.id.upper()} ") == [its]
