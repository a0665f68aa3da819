# SPDX-License-Identifier: Apache-2.0
"""Which descriptors are KVM's, and what they tell of the vCPUs of a process."""

import pytest

from pmuctl.host.kvm.fds import has_kvm, make_kvm_process
from pmuctl.model.vm_ref import ProcessId

VM, VCPU = "anon_inode:kvm-vm", "anon_inode:kvm-vcpu"


@pytest.mark.parametrize(
    ("links", "vms", "vcpus", "unnumbered", "files"),
    [
        ({9: VM, 20: f"{VCPU}:0", 21: f"{VCPU}:1"}, (9,), {20: 0, 21: 1}, (), (9,)),
        ({21: f"{VCPU}:3", 20: f"{VCPU}:4"}, (), {21: 3, 20: 4}, (), (20,)),
        # before Linux 4.16 they have no number
        ({9: VM, 21: VCPU, 20: VCPU}, (9,), {}, (20, 21), (9,)),
        ({21: VCPU, 20: VCPU}, (), {}, (20, 21), (20,)),
    ],
)
def test_vms_and_vcpus_of_a_process_with_and_without_their_numbers(
    links: dict[int, str],
    vms: tuple[int, ...],
    vcpus: dict[int, int],
    unnumbered: tuple[int, ...],
    files: tuple[int, ...],
) -> None:
    process = make_kvm_process(ProcessId(1, 2), {0: "/dev/null", **links})
    assert (process.vms, process.vcpus, process.unnumbered) == (vms, vcpus, unnumbered)
    assert process.files == files
    assert process.has_vcpus
    assert has_kvm(links)


@pytest.mark.parametrize(
    "link",
    [
        *("anon_inode:kvm", "anon_inode:kvm-vm-stats", f"{VCPU}-stats:0", f"{VCPU}:", f"{VCPU}:x"),
        *(
            f"{VCPU}:" + "9" * 12,
            f"/{VCPU}",
            f"{VCPU} (deleted)",
            "/dev/kvm",
        ),
    ],
)
def test_other_descriptors_are_no_vcpus(link: str) -> None:
    assert not has_kvm({7: link})
    assert not make_kvm_process(ProcessId(1, 2), {7: link}).has_vcpus
