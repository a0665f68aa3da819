# SPDX-License-Identifier: Apache-2.0
"""One thing is one word, in whatever form it is written."""

import pytest

from pmuctl.model.symptoms.words import error_names, split_messages, split_words


@pytest.mark.parametrize(
    "text",
    [
        *("Invalid argument", "INVALID ARGUMENT", "invalid\nargument", "EINVAL", "einval"),
        *("(-22)", "returned -22", "errno 22", "errno=22", "(os error 22)", "error: -22"),
        *("Errno 22", "[Errno 22]", "Ungültiges Argument", "Argument invalide", "无效的参数"),
        "ret=\u221222",
    ],
)
def test_an_error_is_its_name_in_any_form(text: str) -> None:
    assert error_names(split_words(text)) == {"EINVAL"}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("No such device", "ENODEV"),
        ("No such device or address", "ENXIO"),
        ("Device or resource busy", "EBUSY"),
        ("EOPNOTSUPP", "ENOTSUP"),
        ("Operation not supported", "ENOTSUP"),
        ("failed: -38", "ENOSYS"),
        ("failed: -123", "EOTHER"),
    ],
)
def test_errors_are_kept_apart(text: str, name: str) -> None:
    assert error_names(split_words(text)) == {name}


@pytest.mark.parametrize(
    "text",
    ["2024-09-22", "CPUs 4-22", "failed (0)", "error 1", "pid 22", "returned -1", "tail -22"],
)
def test_other_numbers_are_no_error(text: str) -> None:
    assert error_names(split_words(text)) == frozenset()


@pytest.mark.parametrize(
    "texts",
    [
        ("register", "registers", "registered"),
        ("fail", "failed", "fails", "failure", "failing"),
        ("initialise", "initialized", "init", "initialisation"),
        ("cpu", "CPU1", "CPUs", "processors"),
        ("vCPU", "vcpu0", "virtual CPU", "vCPUs"),
        ("pin", "pinning", "pinned"),
        ("migrate", "migration", "migrating"),
        ("VM", "guest", "domain", "virtual machine"),
        ("not", "cannot", "n't", "without"),
    ],
)
def test_forms_of_a_word_have_one_stem(texts: tuple[str, ...]) -> None:
    assert frozenset.intersection(*(split_words(text) for text in texts))


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (
            (
                "not supported",
                "unsupported",
                "isn't supported",
                "isn\u2019t supported",
                "&lt;not supported>",
            ),
            "NOT_SUPPORTED",
        ),
        (("100 %", "100%", "100 percent", "400 %", "99.7%", "a whole CPU"), "HUNDRED"),
        (
            ("divide by zero", "division-by-zero", "DIVIDE_BY_ZERO_ERROR", "dividing by 0"),
            "DIVIDE_BY_ZERO",
        ),
        (
            ("<not counted>", "counts nothing", "no counts", "0 cycles", "counters stop"),
            "NOT_COUNTED",
        ),
        (("KVM_EXIT_FAIL_ENTRY", "FailEntry(1, 0)", "exit reason: 9"), "FAIL_ENTRY"),
        (("hangs", "hung", "frozen", "does not respond", "no output", "spinning"), "HANG"),
    ],
)
def test_a_phrase_is_its_name_in_any_form(texts: tuple[str, ...], name: str) -> None:
    assert [text for text in texts if name not in split_words(text)] == []


def test_colours_and_wide_letters_do_not_count() -> None:
    assert split_words(
        "\x1b[31mkvm_init_vcpu\x1b[0m \uff46\uff41\uff49\uff4c\uff45\uff44"
    ) == split_words("kvm_init_vcpu failed")


def test_adjacent_lines_are_read_together_and_distant_ones_apart() -> None:
    (both,) = split_messages("kvm_init_vcpu:\n\n  Invalid argument")
    assert {"kvm_init_vcpu", "EINVAL"} <= both
    distant = split_messages("vcpu\n" + "x\n" * 5 + "Invalid argument")
    assert not any({"vcpu", "EINVAL"} <= words for words in distant)
    assert split_messages(" \n") == []


@pytest.mark.parametrize(
    "prefix",
    [
        "Nov 02 19:22:10 rk libvirtd[10]: ",
        "2024-11-02T19:22:10.123456+00:00 rk libvirtd[10]: ",
        "[   12.345678] ",
        "Jun  3 12:00:01 host1 app[4711]: Nov 02 19:22:10 rk libvirtd[10]: ",
    ],
)
def test_what_a_log_repeats_before_each_line_is_not_within_a_phrase(prefix: str) -> None:
    text = f"{prefix}qemu-kvm: kvm: Device or\n{prefix}resource busy"
    (words,) = split_messages(text)
    assert {"EBUSY", "KVM_SAYS"} <= words


def test_another_program_of_a_log_is_a_word() -> None:
    day = "Nov 02 19:22:10 rk"
    (words,) = split_messages(f"{day} kernel: kvm: failed\n{day} lkvm[7]: gone")
    assert "lkvm" in words
