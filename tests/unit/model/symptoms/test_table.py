# SPDX-License-Identifier: Apache-2.0
"""The table of symptoms is complete, and each of its rows can be found."""

import re

import pytest

from pmuctl.cli.app import NOUNS, VERBS
from pmuctl.model.symptoms.explain import explain
from pmuctl.model.symptoms.matcher import match_symptoms
from pmuctl.model.symptoms.symptom import Symptom
from pmuctl.model.symptoms.table import SYMPTOMS
from pmuctl.model.symptoms.vmms import MANAGERS, VMMS
from pmuctl.model.symptoms.words import error_names, split_words

PROGRAMS = {
    *("pmuctl", "qm", "systemctl", "grep", "cat", "dmesg", "echo", "uname", "perf"),
    *("qemu-system-aarch64", "VMM", "start"),
}


def test_ids_are_unique_words() -> None:
    assert len({each.id for each in SYMPTOMS}) == len(SYMPTOMS)
    for each in SYMPTOMS:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", each.id)


@pytest.mark.parametrize(
    "id",
    [
        *("crosvm-fail-entry", "kvmtool-fail-entry", "cloud-hypervisor-fail-entry", "qemu-spins"),
        *("kvmtool-pmu-busy", "qemu-init-vcpu", "guest-counts-nothing", "supervisor-gone"),
        *("windows-divide-by-zero", "run-ended", "no-vpmu"),
    ],
)
def test_ids_that_were_published_stay(id: str) -> None:
    assert [each.id for each in match_symptoms(id)] == [id]


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.id)
def test_checks_and_fixes_are_commands(symptom: Symptom) -> None:
    (answer,) = explain(symptom.id)
    assert answer.means[-1] != "."
    for text in (answer.means, answer.check, answer.fix):
        assert "  " not in text
        assert not re.search(r"[{}]", text)
    for line in (answer.check, answer.fix):
        words = line.split()
        assert words[0] in PROGRAMS
        if words[0] == "pmuctl":
            assert words[1] in {**NOUNS, **VERBS}


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.id)
def test_every_symptom_is_found_by_what_is_seen(symptom: Symptom) -> None:
    for message in symptom.seen.split("; "):
        found = match_symptoms(message)
        assert symptom.id in [*(each.id for each in found), *(each.general for each in found)]


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.id)
def test_an_id_is_its_symptom(symptom: Symptom) -> None:
    assert match_symptoms(symptom.id) == match_symptoms(f" {symptom.id.upper()} ") == [symptom]


@pytest.mark.parametrize("symptom", SYMPTOMS, ids=lambda each: each.id)
def test_errors_are_errors_and_generals_are_symptoms(symptom: Symptom) -> None:
    errors = set(symptom.errors or ())
    assert error_names(frozenset(errors)) == errors
    assert symptom.general in {None, *(each.id for each in SYMPTOMS if each.vmm is None)}


def test_words_of_the_table_are_words_that_a_text_can_have() -> None:
    """A capital word that no phrase makes would be a row that never matches."""
    phrases = {
        *("HUNDRED", "DIVIDE_BY_ZERO", "NOT_SUPPORTED", "NOT_COUNTED", "FAIL_ENTRY", "HANG"),
        *("DEVICE_CPU", "BLUE_SCREEN", "STATUS_125", "OTHER_REASON", "PERF_SAYS"),
        *("EXIT_REASON_9", "ENTER_FAILS", "QEMU_EXIT_9", "NO_TARGET", "PMU_IRQ", "OTHER_DEVICE"),
        *("FEW_COUNTERS", "CPUS_OFFLINE", "NO_PMU_IRQ", "LOAD_OF_MIGRATION"),
        *("PMU_REGISTER", "KVM_SAYS"),
    }
    for symptom in SYMPTOMS:
        for entry in (*symptom.words, *symptom.may, *symptom.unless):
            for word in re.split(r"[ |]", entry):
                if word.isupper():
                    assert word in phrases or error_names(frozenset({word})), (symptom.id, word)


def test_vmms_and_managers_are_found_by_their_names() -> None:
    for name, pattern in [(each.name, each.pattern) for each in VMMS] + [
        (each.name, each.pattern) for each in MANAGERS
    ]:
        word = name.removesuffix("'s VMM").lower()
        assert re.search(pattern, f"{word}: failed"), name


def test_parts_of_an_identifier_are_words() -> None:
    assert {"kvm_init_vcpu", "kvm", "init", "vcpu"} <= split_words("kvm_init_vcpu: failed")
