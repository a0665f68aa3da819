# SPDX-License-Identifier: Apache-2.0
"""Random sequences of calls: good and bad values, in every order a VMM can make them.

The same seed and number give the same sequence, on a host with the same places.
"""

import random
from collections.abc import Sequence

from tests.lab.sequences import ATTRIBUTES, Script

STEPS = range(6, 24)
UNKNOWN = ("99", "0x100000000", "0xffffffffffffffff")
IRQS = (
    "16",
    "22",
    "27",
    "30",
    "31",
    "32",
    "40",
    "63",
    "64",
    "1019",
    "1020",
    "5000",
    "5",
    "0",
    "-1",
)
EVENTS = (
    *("0x11+1", "0x11+0", "0+0", "0+0x400", "0x3fe+1", "0x3ff+1", "0x3ff+2", "0x400+0", "0x400+1"),
    *("0x4000+0x40", "0+0xffff", "0xffff+0", "0xffff+1", "0xffff+2", "0xffff+0xffff"),
)
STRANGE_PMUS = ("9999", "-1", "0", "1", "4", "0x80000000")
COUNTERS = ("0", "1", "2", "5", "6", "7", "31", "32", "99", "-1", "0x80000000")


class Generator:
    """Makes one sequence."""

    def __init__(self, seed: int, number: int, *, places: Sequence[str]) -> None:
        self._random = random.Random(f"{seed}/{number}")
        self._places = sorted(places)
        self._pmus = [place for place in self._places if place != "-"]
        self._vcpus = self._random.randint(1, 3)
        self._gic = self._pick("none", "created", "ready", weights=(2, 2, 8))
        # KVM lets no GIC be made once a vCPU has run
        self._has_run = False
        self._has_ended = False

    def script(self) -> Script:
        """The VM and its steps."""
        feature = self._pick("pmu", "none", "strict", weights=(16, 2, 3))
        vm = f"{self._vcpus} {feature} {self._gic} {self._pick(*self._places)}"
        steps: list[str] = []
        length = self._random.choice(STEPS)
        while len(steps) < length and not self._has_ended:
            steps += self._steps()
        return Script(vm=vm, steps=tuple(steps))

    def _pick(self, *words: str, weights: Sequence[int] | None = None) -> str:
        return self._random.choices(words, weights)[0]

    def _vcpu(self) -> str:
        return str(self._random.randrange(self._vcpus))

    def _steps(self) -> list[str]:
        kind = self._pick(
            *("set", "get", "has", "counters", "at", "gic", "run", "start", "child"),
            weights=(60, 6, 4, 6, 8, 6, 3, 4, 1),
        )
        match kind:
            case "set":
                return [self._set()]
            case "child":
                return [f"child {self._set()}"]
            case "get":
                return [f"get {self._vcpu()} {self._attr()}{self._pick('', '', ' null', ' bad')}"]
            case "has":
                return [f"has {self._vcpu()} {self._attr()}"]
            case "counters":
                return [f"counters {self._vcpu()}"]
            case "at":
                return [f"at {self._pick(*self._places)}"]
            case "gic":
                return self._next_gic()
            case "run":
                return self._run(self._vcpu())
        vcpu = self._vcpu()
        return [f"set {vcpu} IRQ 23", f"set {vcpu} INIT", *self._run(vcpu)]

    def _run(self, vcpu: str) -> list[str]:
        self._has_run = True
        # newer kernels declare a VM dead that runs with a GIC which is not ready: EIO for ever
        self._has_ended = self._gic == "created"
        return [f"run {vcpu}"]

    def _next_gic(self) -> list[str]:
        if self._has_run or self._gic == "ready":
            return []
        word = "create" if self._gic == "none" else "init"
        self._gic = "created" if self._gic == "none" else "ready"
        return [f"gic {word}"]

    def _attr(self) -> str:
        return self._pick(*ATTRIBUTES, self._pick(*UNKNOWN))

    def _set(self) -> str:
        attr = self._attr()
        return " ".join(word for word in ("set", self._vcpu(), attr, self._value(attr)) if word)

    def _value(self, attr: str) -> str:
        if attr == "INIT":
            return self._pick("", "null", "bad")
        if self._random.random() < 0.06:
            return self._pick("null", "bad")
        is_plain = self._random.random() < 0.5
        match attr:
            case "IRQ":
                return "23" if is_plain else self._pick(*IRQS)
            case "SET_PMU":
                return self._pick(*self._pmus) if is_plain else self._pick(*STRANGE_PMUS)
            case "SET_NR_COUNTERS":
                return self._pick(*COUNTERS)
            case "FILTER":
                events = "0x11+1" if is_plain else self._pick(*EVENTS)
                action = self._pick("allow", "deny", "2", "255", weights=(8, 8, 1, 1))
                return f"{events} {action}{self._pick('', ' pad', weights=(9, 1))}"
        return "0"


def make(seed: int, count: int, *, places: Sequence[str]) -> list[Script]:
    """The first `count` sequences of a seed, for a host with these places."""
    return [Generator(seed, number, places=places).script() for number in range(count)]
