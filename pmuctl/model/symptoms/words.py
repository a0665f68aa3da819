# SPDX-License-Identifier: Apache-2.0
"""The words of a message, in one form whatever its case, order, grammar and punctuation are.

A phrase that says one thing in many forms becomes one word in capitals: "Invalid argument",
"(-22)" and "os error 22" are EINVAL, "isn't supported" is NOT_SUPPORTED. Every other word is
reduced to its stem.
"""

import errno
import re
import unicodedata
from collections.abc import Mapping, Sequence

WINDOW_LINES = 3
"""How many adjacent lines are read as one message: a terminal wraps them, VMMs write several."""

_ERRORS: Mapping[str, str] = {
    "EPERM": "operation not permitted",
    "ENOENT": "no such file or directory",
    "ESRCH": "no such process",
    "EINTR": "interrupted system call",
    "EIO": "input/output error",
    "ENXIO": "no such device or address",
    "E2BIG": "argument list too long",
    "ENOEXEC": "exec format error",
    "EBADF": "bad file descriptor",
    "EAGAIN": "resource temporarily unavailable",
    "ENOMEM": "cannot allocate memory",
    "EACCES": "permission denied",
    "EFAULT": "bad address",
    "EBUSY": "device or resource busy",
    "EEXIST": "file exists",
    "ENODEV": "no such device",
    "ENOTDIR": "not a directory",
    "EISDIR": "is a directory",
    "EINVAL": "invalid argument",
    "ENFILE": "too many open files in system",
    "EMFILE": "too many open files",
    "ENOTTY": "inappropriate ioctl for device",
    "EFBIG": "file too large",
    "ENOSPC": "no space left on device",
    "EROFS": "read-only file system",
    "EPIPE": "broken pipe",
    "ERANGE": "numerical result out of range",
    "EDEADLK": "resource deadlock avoided",
    "ENOSYS": "function not implemented",
    "EOVERFLOW": "value too large for defined data type",
    "ENOTSUP": "operation not supported",
    "EADDRINUSE": "address already in use",
    "ECONNREFUSED": "connection refused",
    "ECONNRESET": "connection reset by peer",
    "ETIMEDOUT": "connection timed out",
}
"""Errors, and their texts in glibc (strerror(3)) in lower case."""
_OTHER_TEXTS: Mapping[str, str] = {
    "resource busy": "EBUSY",  # musl
    "busy": "EBUSY",
    "i/o error": "EIO",  # musl
    "device not configured": "ENXIO",  # the BSDs
    "ungültiges argument": "EINVAL",
    "das argument ist ungültig": "EINVAL",
    "argument invalide": "EINVAL",
    "argumento inválido": "EINVAL",
    "argomento non valido": "EINVAL",
    "недопустимый аргумент": "EINVAL",
    "无效的参数": "EINVAL",
    "無効な引数": "EINVAL",
}
_ERROR_TEXTS = {**{text: name for name, text in _ERRORS.items()}, **_OTHER_TEXTS}
_LONGEST_FIRST = sorted(_ERROR_TEXTS, key=len, reverse=True)
_ERROR_TEXT = re.compile(
    r"(?<!\w)(?:" + "|".join(_LONGEST_FIRST).replace(" ", r"\s+") + r")(?!\w)"
)
_ERROR_NAME = re.compile(rf"\b(?:{'|'.join(_ERRORS)}|EOPNOTSUPP)\b", re.IGNORECASE)
_ERROR_NUMBER = re.compile(
    # the kernel's and QEMU's "-22", only where a result stands, and "errno 22", "os error 22"
    r"(?:[(\[:=]\s*|\b(?:errno|error|err|rc|ret|returns|returned|failed|code|with)\s*[:=]?\s*)"
    r"-(\d{1,3})\b|\b(?:errno|os error|error code|error)\s*[:=]?\s*[(\[]?(\d{1,3})\b"
)

_FEW_COUNTERS = r"(?:\b1|\bpmu driver, 2) (?:\([0-9a-f,]+\) )?counters available\b"
"""Linux' driver counts the cycle counter among them (armv8pmu_probe_pmu())."""
_NO_PMU_IRQ = (
    r"\bno (?:acpi )?(?:pmu (?:irqs?|interrupts?)\b"
    r"|(?:irqs?|interrupts?) (?:for|of) (?:the )?pmu\b)"
)

_PHRASES: Sequence[tuple[str, str]] = (
    ("HUNDRED", r"(?<![\d.])(?:[1-9]\d\d|9[5-9])(?:\.\d+)?\s*(?:%|percent\b|per cent\b|pct\b)"),
    ("HUNDRED", r"\b(?:hundred|full) (?:percent|per cent|%|cpu|core)|\b(?:a|one) whole cpu\b"),
    ("HUNDRED", r"\b(?:pegs|pegged|pegging|maxed out|maxes out|max cpu|eats (?:a|all))\b"),
    (
        "DIVIDE_BY_ZERO",
        r"(?<![a-z0-9])div(?:id[a-z]*|ision)?[\s_-]*(?:error[\s_-]*)?(?:by[\s_-]*)?(?:zero|0|null)(?![a-z0-9])"
        r"|\bzero[\s_-]*divi\w+|\b(?:0x)?(?:f{8})?c0000094\b",
    ),
    ("PERF_SAYS", r"<not\s(?:supported|counted)>"),
    (
        "NOT_SUPPORTED",
        r"\bun(?:supported|available)\b|\b(?:no|lacks?) (?:\w+ )?support\b"
        r"|\b(?:no|not|never)[\s_-](?:(?:be|being|yet|at all|currently) )?"
        r"(?:support\w*|available|implemented)\b",
    ),
    (
        "NOT_COUNTED",
        r"\b(?:not|never|no|without)[\s_-](?!hw |hardware )(?:\w+ )?count\w*"
        r"|\bcounts? nothing\b|\buncounted\b"
        r"|\b(?:zeros?|zeroes|0) (?:for|in) (?:\w+ )?(?:cycles|instructions|counters?|events)\b"
        r"|\b(?:zero|0)[ \t]+(?:cpu[ _-])?(?:cycles|instructions|counts?|counters)\b"
        r"|\b(?:counters?|cycles|instructions|counts|pmccntr\w*)\b[^.;]{0,30}?\b"
        r"(?:zero|0|stop\w*|stuck|frozen|freeze|(?:stands?|stays?|is|are) still)(?![\w.])",
    ),
    (
        "FAIL_ENTRY",
        r"\b\w*fail_entry\w*|\bfailentry\b|\bcpu_unsupported\b|\bhw run failure\b"
        r"|\bexit[\s_]*reason\s*[:=]?\s*(?:9|0x9)\b|\bhardware_entry_failure\w*",
    ),
    (
        "ENTER_FAILS",
        r"\bfail\w* entry\b|\bentry fail\w*"
        r"|\b(?:fail\w*|cannot|could not|not|refused) (?:to )?enter\b",
    ),
    (
        "HANG",
        r"\bh(?:ang|angs|anging|ung|anged)\b|\bfreez\w+|\bfroze\w*|\bstuck\b|\bstalls?\b"
        r"|\bstalled\b|\bunresponsive\b|\bspins?\b|\bspinning\b|\bbusy[ -]loops?\b"
        r"|\b(?:no|not|never)\b[^\n.;:]{0,12}\b(?:(?:respond|answer|output|console)\w*"
        r"|boot(?:s|ed|ing)?\b)"
        r"|\b(?:black|blank|empty) (?:screen|console)\b|\bsilent\w*|\bdead\b",
    ),
    # PMCR_EL0 to PMOVSSET_EL0, PMINTENSET_EL1, PMEVCNTR0_EL0 to PMCCFILTR_EL0 (Arm ARM)
    (
        "PMU_REGISTER",
        r"\bop1\W*[03]\W+crn\W*(?:9\W+crm\W*1[2-4]|14\W+crm\W*(?:[89]|1[0-5]))\b",
    ),
    # two spaces are where the text of an error was
    ("KVM_SAYS", r"\bkvm: (?: |$)"),
    ("EXIT_REASON_9", r"\bkvm exit reason\s*:?\s*9\b"),
    ("DEVICE_CPU", r"\bdevice\W{0,3}cpu\b"),
    ("OTHER_DEVICE", r"\bof device ['\"`](?!cpu['\"`])"),
    ("FEW_COUNTERS", _FEW_COUNTERS),
    ("NO_PMU_IRQ", _NO_PMU_IRQ),
    ("LOAD_OF_MIGRATION", r"\bload of migration failed\b"),
    (
        "QEMU_EXIT_9",
        r"\bkvm_arch_handle_exit: un-?handled exit reason 9\b|\bunknown exit, hardware reason 9\b",
    ),
    ("NO_TARGET", r"\bunable to find matching target\b(?! for| resource)"),
    # PPI 7, which VMMs give to the PMU
    ("PMU_IRQ", r"\birq ?23\b(?! for (?!arm pmu))"),
    (
        "CPUS_OFFLINE",
        r"\boff-?line cpu\(s\) list\b|\bbrought up 1 node, 1 cpu\b"
        r"|\btotal of 1 processors activated\b"
        r"|\bcpu\d*: failed in unknown state\b",
    ),
    ("BLUE_SCREEN", r"\bblue[\s_-]*screen\w*|\bbsod\w*|\bbug[\s_-]*check\w*|\bstop code\b"),
    ("STATUS_125", r"\b(?:status|code|exited|exits|returned|with)\b[\s:=/]*(?:with )?125\b"),
)
_COMPILED = tuple((name, re.compile(pattern)) for name, pattern in _PHRASES)
_OTHER_REASON = re.compile(
    # of FAIL_ENTRY; arm64 has only reason 1, CPU_UNSUPPORTED
    r"(?:fail_?entry\s*\(|hw run failure:?|hardware error|(?:failure_)?reason\s*[:=]?)\s*"
    r"(?!0x0*1\b|1\b|9\b|0x9\b)(?:0x[0-9a-f]+|\d+)\b"
)

_WORD = re.compile(r"[A-Z_]{3,}[0-9]*|[^\W_]+(?:_+[^\W_]+)*")
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CAMEL = re.compile(r"(?<=[a-z]{2})(?=[A-Z][a-z])")
_VIRTUAL_CPU = re.compile(r"\b(?:virtual|v)[ -](?:cpu|core|processor)s?\b")
_RUN_TOGETHER = re.compile(r"\b(vcpu|init(?:ialize)?|setone)(run|init|exit|pmu|reg)(?![a-z])")
"""Names of Rust's errors and exits in a text without capitals."""
_NOT = re.compile(r"n['`]t\b")
_IRREGULAR = {
    **dict.fromkeys(("not", "none", "without", "never", "cannot", "nothing", "lacks"), "no"),
    **dict.fromkeys(("lack", "missing", "misses"), "no"),
    **dict.fromkeys(("regs", "reg"), "regist"),
    **dict.fromkeys(("irqs", "interrupts", "interrupt", "ppi"), "irq"),
    **dict.fromkeys(("single", "1"), "one"),
    **dict.fromkeys(("processors", "processor"), "cpu"),
    **dict.fromkeys(("vms", "domain", "domains", "machine", "guests", "vm"), "guest"),
    **dict.fromkeys(("initialise", "initialize", "initialised", "initialized"), "init"),
    **dict.fromkeys(("initialising", "initializing", "initialisation"), "init"),
    **dict.fromkeys(("initialization", "initial", "inits"), "init"),
    **dict.fromkeys(("gone", "died", "dies", "dead", "killed", "lost", "crashed"), "gone"),
    "unable": "fail",
    **dict.fromkeys(("win", "windows"), "windows"),  # a window is something else
}
_ENDINGS = (
    *("ations", "ating", "ation", "ated", "ates", "ings", "ures"),
    *("ing", "ure", "ers", "ate", "ion", "ed", "es", "er", "s", "e"),
)


_LOG_PREFIX = re.compile(
    # of syslog and journalctl, with the program as a group, and of the kernel's ring buffer
    r"[\s>`'\"]*(?:(?:[a-z]{3} [ \d]\d \d\d:\d\d:\d\d|\d{4}-\d\d-\d\dT[\d:.,+-]+Z?) \S+ "
    r"([\w./-]+)(?:\[\d+\])?: |\[ *\d+\.\d+\] )+",
    re.IGNORECASE,
)


def split_messages(text: str) -> list[frozenset[str]]:
    """Return the words of each group of WINDOW_LINES adjacent lines that are not blank.

    A text of no more lines is one group. Return an empty list if there is no line.
    """
    lines = [line for line in text.replace("\\n", "\n").splitlines() if line.strip()]
    last = max(len(lines) - WINDOW_LINES, 0)
    groups = (_join_lines(lines[first : first + WINDOW_LINES]) for first in range(last + 1))
    return [split_words(group) for group in dict.fromkeys(groups)] if lines else []


def _join_lines(lines: Sequence[str]) -> str:
    """Return a message of several lines, without what a log repeats in front of each.

    It would stand within a phrase that was wrapped.
    """
    first = _LOG_PREFIX.match(lines[0])
    joined = [lines[0]]
    for line in lines[1:]:
        prefix = _LOG_PREFIX.match(line)
        is_same = first is not None and prefix is not None and first[1] == prefix[1]
        joined.append(line[prefix.end() :] if prefix is not None and is_same else line)
    return "\n".join(joined)


def split_words(text: str) -> frozenset[str]:
    """Return the words of a text: names of errors and phrases in capitals, stems of the rest.

    The parts of an identifier are words, too: kvm_init_vcpu, kvm, init and vcpu.
    """
    names: set[str] = set()
    plain = _fold(text)
    if _OTHER_REASON.search(plain):
        names.add("OTHER_REASON")
    plain = _take_errors(plain, names)
    for name, pattern in _COMPILED:
        if pattern.search(plain):
            names.add(name)
    return frozenset(names | {stem for word in _WORD.findall(plain) for stem in _stems(word)})


def error_names(words: frozenset[str]) -> frozenset[str]:
    """Return the names of errors, such as EINVAL, among these words."""
    return words & _ERROR_WORDS


_ERROR_WORDS = frozenset(_ERRORS) | {"EOTHER"}


def _fold(text: str) -> str:
    """Return a text in lower case, with plain punctuation and CamelCase split into words."""
    text = _ANSI.sub("", unicodedata.normalize("NFKC", text)).replace("\u2212", "-")
    text = text.replace("\u2019", "'").replace("\u2018", "'").replace("\u2013", "-")
    text = _CAMEL.sub(" ", " ".join(text.split()).replace("FailEntry", "fail_entry"))
    text = text.lower()
    return _RUN_TOGETHER.sub(r"\1 \2", _VIRTUAL_CPU.sub("vcpu", _NOT.sub(" not", text)))


def _take_errors(text: str, names: set[str]) -> str:
    """Add the errors of a text to `names`, and return the text without their words."""

    def take_text(match: re.Match[str]) -> str:
        names.add(_ERROR_TEXTS[" ".join(match[0].split())])
        return " "

    def take_name(match: re.Match[str]) -> str:
        names.add("ENOTSUP" if match[0].upper() == "EOPNOTSUPP" else match[0].upper())
        return " "

    text = _ERROR_TEXT.sub(take_text, text)
    text = _ERROR_NAME.sub(take_name, text)
    names.update(_name_number(int(match[1] or match[2])) for match in _ERROR_NUMBER.finditer(text))
    return text


def _name_number(number: int) -> str:
    """Return the name of an error number; of 0 and 1 the phrase that there was an error."""
    if number < 2:
        return "FAILED"
    name = {"EOPNOTSUPP": "ENOTSUP", "EDEADLOCK": "EDEADLK"}.get(
        errno.errorcode.get(number, ""), errno.errorcode.get(number, "")
    )
    return name if name in _ERRORS else "EOTHER"


def _stems(word: str) -> set[str]:
    """Return the stem of a word, and if it is an identifier it and the stems of its parts."""
    parts = word.split("_")
    found = {stem(part) for part in parts if part}
    return found if len(parts) == 1 else {word, *found}


def stem(word: str) -> str:
    """Return a word without its ending: "registers" and "registered" are "regist".

    Digits at its end do not count ("cpu1" is "cpu"), but a number stays as it is.
    """
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word[:1].isalpha() and not word.startswith("0x"):
        word = word.rstrip("0123456789") or word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    while True:
        ending = next(
            (end for end in _ENDINGS if word.endswith(end) and len(word) > len(end) + 2), ""
        )
        if not ending:
            return _IRREGULAR.get(word, word)
        word = word.removesuffix(ending)
        if word[-1] == word[-2] and word[-1] in "gmnpt":
            word = word[:-1]
