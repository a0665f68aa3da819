# SPDX-License-Identifier: Apache-2.0
"""Orders as text, and the calls that follow from them."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmuctl.control.server.backend import VcpuStatus
from pmuctl.errors import DeniedError, PmuctlError, RefusedError, SealedError, UnsupportedError
from pmuctl.launch import handshake
from pmuctl.launch.ioctls import LOCK, IoctlCall, ioctl_of, lock, steps
from pmuctl.launch.spec import LaunchSpec
from pmuctl.launch.trace.address_space import PendingVcpu
from pmuctl.launch.vcpu_table import VcpuTable
from pmuctl.model.cpuset import CpuSet
from pmuctl.model.event import EventSet
from pmuctl.model.event_filter import Action, EventFilter, FilterRange
from pmuctl.model.plan import SetAttr
from pmuctl.uapi.kvm import KVM_SET_DEVICE_ATTR
from pmuctl.uapi.kvm_arm64 import (
    KVM_ARM_VCPU_PMU_V3_FILTER,
    KVM_ARM_VCPU_PMU_V3_INIT,
    KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PMU_V3_SET_PMU,
)

ALL = frozenset(
    {
        KVM_ARM_VCPU_PMU_V3_IRQ,
        KVM_ARM_VCPU_PMU_V3_INIT,
        KVM_ARM_VCPU_PMU_V3_FILTER,
        KVM_ARM_VCPU_PMU_V3_SET_PMU,
    }
)
A72 = (11, "armv8_cortex_a72")
ONLY_CYCLES = EventFilter(Action.DENY, EventSet.of_ranges([(0x11, 1)]))

words = st.text(st.characters(exclude_categories=())) | st.binary().map(
    lambda raw: raw.decode(errors="surrogateescape")
)
filters = st.builds(
    EventFilter,
    st.sampled_from(Action),
    st.lists(st.tuples(st.integers(0, 0xFF00), st.integers(1, 0xFF))).map(EventSet.of_ranges),
)
orders = st.builds(
    LaunchSpec,
    name=st.text(min_size=1),
    socket=st.just(Path("/run/pmuctl/web1.sock")),
    command=st.lists(words, min_size=1).map(tuple),
    pmu=st.none() | st.tuples(st.integers(0, 2**31 - 1), words),
    filter=st.none() | filters,
    affinity=st.none() | st.sets(st.integers(0, 4096), min_size=1).map(CpuSet.of),
    attributes=st.frozensets(st.integers(0, 9)),
    defaults=st.dictionaries(
        st.tuples(st.integers(0, 2**31 - 1), words),
        st.sets(st.integers(0, 4096), min_size=1).map(CpuSet.of),
    ),
    event_bits=st.none() | st.integers(10, 16),
    event_bits_of=st.dictionaries(st.integers(0, 2**31 - 1), st.integers(10, 16), max_size=3),
    hold=st.booleans(),
    timeout=st.none() | st.floats(0, 1e9),
    best_effort=st.booleans(),
)


def wanted(**more: object) -> LaunchSpec:
    its = {"attributes": ALL, "event_bits": 16} | more
    return LaunchSpec(name="web1", socket=Path("/x"), command=("vmm",), **its)  # type: ignore[arg-type]


@settings(deadline=None)
@given(orders)
def test_decode_is_the_inverse_of_encode(its: LaunchSpec) -> None:
    assert LaunchSpec.decode(its.encode()) == its


def test_the_text_of_a_spec() -> None:
    its = wanted(pmu=A72, filter=ONLY_CYCLES, defaults={A72: CpuSet.parse("2-3")}, timeout=2.5)
    assert its.encode() == (
        b'{"name": "web1", "socket": "/x", "command": ["vmm"], "pmu": [11, "armv8_cortex_a72"], '
        b'"filter": {"default": "deny", "except": [[17, 1]]}, "affinity": null, '
        b'"names-cpus": false, "attributes": [0, 1, 2, 3], "event-bits": 16, "event-bits-of": {}, '
        b'"defaults": [[11, "armv8_cortex_a72", "2-3"]], "hold": false, "timeout": 2.5, '
        b'"best-effort": false}'
    )


def test_words_that_are_not_utf_8_come_through() -> None:
    its = wanted()
    word = b"-name \xff\xfe".decode(errors="surrogateescape")
    again = LaunchSpec.decode(LaunchSpec(name="a", socket=its.socket, command=(word,)).encode())
    assert again.command[0].encode(errors="surrogateescape") == b"-name \xff\xfe"


def test_without_a_pmu_nothing_is_set() -> None:
    assert steps(wanted()) == ()


def test_a_pmu_alone_is_locked() -> None:
    assert steps(wanted(pmu=A72)) == (SetAttr(0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11, A72[1]), lock())
    assert lock().value == LOCK == FilterRange(base=0, nevents=0, action=Action.DENY)


def test_a_filter_is_a_lock_already() -> None:
    its = steps(wanted(pmu=A72, filter=ONLY_CYCLES))
    assert [step.attr for step in its] == [KVM_ARM_VCPU_PMU_V3_SET_PMU, KVM_ARM_VCPU_PMU_V3_FILTER]
    assert its[1].value == FilterRange(base=0x11, nevents=1, action=Action.ALLOW)


def test_a_filter_that_needs_no_call_is_locked() -> None:
    everything = EventFilter(Action.ALLOW, EventSet.of_ranges([]))
    assert steps(wanted(pmu=A72, filter=everything))[-1] == lock()


def test_a_kernel_without_the_attribute_is_refused() -> None:
    with pytest.raises(UnsupportedError):
        steps(wanted(pmu=A72, attributes=ALL - {KVM_ARM_VCPU_PMU_V3_SET_PMU}))
    with pytest.raises(UnsupportedError):
        steps(wanted(pmu=A72, filter=ONLY_CYCLES, attributes=ALL - {KVM_ARM_VCPU_PMU_V3_FILTER}))


def test_a_step_as_the_ioctl_that_it_is() -> None:
    its = ioctl_of(SetAttr(0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11, A72[1]))
    assert its.request == KVM_SET_DEVICE_ATTR
    # struct kvm_device_attr: flags, group, attr, addr; then what addr is to point to
    assert its.argument == bytes(8) + bytes([3]) + bytes(15) + bytes([11, 0, 0, 0])
    assert its.pointer == 16
    assert ioctl_of(lock()).argument[24:] == bytes([0, 0, 0, 0, 1, 0, 0, 0])


@pytest.mark.parametrize(("number", "name"), [(16, "EBUSY"), (6, "ENXIO"), (22, "EINVAL")])
def test_a_refusal_has_the_kernels_answer(number: int, name: str) -> None:
    its = ioctl_of(SetAttr(0, KVM_ARM_VCPU_PMU_V3_SET_PMU, 11, A72[1])).refusal(number)
    assert isinstance(its, PmuctlError)
    assert its.errno == name


def test_a_refusal_of_a_call_that_is_no_step() -> None:
    its = IoctlCall(description="KVM_X", request=1, argument=b"").refusal(22)
    assert isinstance(its, RefusedError)
    assert (its.message, its.errno) == ("KVM_X was refused", "EINVAL")


def vcpu(index: int, *, tgid: int = 1, vm_fd: int = 4, tid: int = 1) -> PendingVcpu:
    return PendingVcpu(tgid=tgid, tid=tid, vm_fd=vm_fd, fd=10 + index, index=index)


def test_a_roster_has_the_vcpus_of_one_vm() -> None:
    its = VcpuTable()
    assert its.pid is None
    for index in (1, 0):
        its.add(vcpu(index, tid=100 + index))
    assert its.pid == 1
    assert its.statuses({1: 55}) == [
        VcpuStatus(index=0, tid=None, initialised=False, has_run=False),
        VcpuStatus(index=1, tid=55, initialised=True, has_run=True),
    ]


@pytest.mark.parametrize(
    "other",
    [vcpu(0), vcpu(5, vm_fd=9), vcpu(5, tgid=2)],
    ids=["its number again", "another VM", "another process"],
)
def test_a_vcpu_of_another_vm_begins_a_new_roster(other: PendingVcpu) -> None:
    its = VcpuTable()
    its.add(vcpu(0))
    its.add(vcpu(1))
    its.add(other)
    assert [vcpu.index for vcpu in its.statuses({})] == [other.index]
    assert its.find(other.fd) is other
    assert its.pid == other.tgid


@settings(deadline=None)
@given(words, st.none() | words, st.none() | words, st.none() | st.just("EBUSY"))
def test_an_error_goes_through_as_text(
    message: str, why: str | None, fix: str | None, errno: str | None
) -> None:
    for kind in (DeniedError, RefusedError, UnsupportedError, SealedError):
        its = handshake.decode_error(
            handshake.encode_error(kind(message, why=why, fix=fix, errno=errno))
        )
        assert type(its) is kind
        assert (its.message, its.why, its.fix, its.errno) == (message, why, fix, errno)
