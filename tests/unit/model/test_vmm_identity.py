# SPDX-License-Identifier: Apache-2.0
"""What command lines and thread names of VMMs tell."""

import pytest

from pmuctl.model.vmm_identity import VmmKind, identify, is_pmuctl, vcpu_of_thread

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
QEMU = "/usr/bin/qemu-system-aarch64"


@pytest.mark.parametrize(
    ("comm", "index"),
    [
        ("kvm-vcpu-3", 3),
        ("crosvm_vcpu0", 0),
        ("vcpu12", 12),
        ("fc_vcpu 1", 1),
        ("CPU 7/KVM", 7),
        ("CPU 7/TCG", None),
        ("vcpu", None),
        ("kvm-vcpu-", None),
        ("kvm-vcpu-" + "9" * 12, None),
        ("CPU 1/KVM ", None),
        ("", None),
    ],
)
def test_threads_of_vcpus(comm: str, index: int | None) -> None:
    assert vcpu_of_thread(comm) == index


@pytest.mark.parametrize(
    ("argv", "kind", "name", "uuid"),
    [
        ([QEMU, "-name", "web1"], VmmKind.QEMU, "web1", None),
        ([QEMU, "--name", "web1", "-uuid", UUID], VmmKind.QEMU, "web1", UUID),
        ([QEMU, "-name", "guest=web1,debug-threads=on"], VmmKind.QEMU, "web1", None),
        ([QEMU, "-name", "a,,b,process=x"], VmmKind.QEMU, "a,b", None),
        ([QEMU, "-name", "debug-threads=on"], VmmKind.QEMU, None, None),
        ([QEMU, "-name", "pid/1"], VmmKind.QEMU, None, None),
        ([QEMU, "-name", "x" * 256], VmmKind.QEMU, None, None),
        ([QEMU, "-name", "--all"], VmmKind.QEMU, None, None),
        ([QEMU, "-name", "  "], VmmKind.QEMU, None, None),
        ([QEMU, "-name"], VmmKind.QEMU, None, None),
        ([QEMU, "-name", "\u2800 \u3164\u200b\n"], VmmKind.QEMU, None, None),
        ([QEMU, "-name", " a"], VmmKind.QEMU, " a", None),
        ([QEMU, "-uuid", "1"], VmmKind.QEMU, None, None),
        (["/usr/libexec/qemu-kvm", "-name", "Windows 11"], VmmKind.QEMU, "Windows 11", None),
        (["lkvm", "run", "--name", "k1"], VmmKind.KVMTOOL, "k1", None),
        (["lkvm", "run", "-n", "k1", "--pmu"], VmmKind.KVMTOOL, "k1", None),
        (["crosvm", "run", "--name=c1"], VmmKind.CROSVM, "c1", None),
        (["firecracker", "--id", "f1"], VmmKind.FIRECRACKER, "f1", None),
        (
            ["cloud-hypervisor", "--platform", f"uuid={UUID.upper()}"],
            VmmKind.CLOUD_HYPERVISOR,
            None,
            UUID,
        ),
        (["python3", "vmm.py", "-name", "x"], None, None, None),
        ([], None, None, None),
    ],
)
def test_names(argv: list[str], kind: VmmKind | None, name: str | None, uuid: str | None) -> None:
    its = identify(argv, "x")
    assert (its.kind, its.name, its.uuid) == (kind, name, uuid)


def test_without_a_command_line_the_name_of_the_thread_tells() -> None:
    assert identify([], "qemu-system-aar").kind is VmmKind.QEMU
    assert identify([], "cloud-hyperviso").kind is VmmKind.CLOUD_HYPERVISOR


@pytest.mark.parametrize(
    ("words", "paths"),
    [
        ("-qmp unix:/run/q,server=on,wait=off", ("/run/q",)),
        ("-qmp unix:q.sock,server,nowait", ("q.sock",)),
        ("-qmp-pretty unix:/q,server=on", ("/q",)),
        ("-qmp unix:/run/q", ()),
        ("-qmp tcp:localhost:4444,server", ()),
        ("-qmp stdio", ()),
        ("-chardev socket,id=a,path=/q,server=on -mon chardev=a,mode=control", ("/q",)),
        ("-mon a,mode=control -chardev socket,id=a,path=/q,server=on", ("/q",)),
        ("-chardev socket,id=a,path=/q,server=on -mon chardev=a,mode=readline", ()),
        ("-chardev socket,id=a,path=/q,server=on -mon chardev=b,mode=control", ()),
        ("-chardev socket,id=a,fd=3,server=on -mon chardev=a,mode=control", ()),
        ("-chardev socket,id=a,path=/q,server=on,abstract=on -qmp chardev:a", ()),
        ("-chardev socket,id=a,path=/q,server=on -qmp chardev:a", ("/q",)),
        ("-chardev pty,id=a -mon chardev=a,mode=control", ()),
        ("-monitor unix:/q,server", ()),
    ],
)
def test_monitors_at_which_qemu_listens(words: str, paths: tuple[str, ...]) -> None:
    assert identify([QEMU, *words.split()], "x").monitors == paths


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"{QEMU} -cpu host,pmu=off", (False, False)),
        (f"{QEMU} -cpu host,pmu=on", (True, False)),
        (f"{QEMU} -cpu host", (None, False)),
        ("lkvm run", (False, False)),
        ("lkvm run --pmu", (True, True)),
        ("crosvm run --no-pmu", (False, False)),
        ("crosvm run", (None, False)),
        ("cloud-hypervisor", (None, False)),
        ("firecracker", (False, False)),
    ],
)
def test_what_options_say_of_a_pmu(words: str, told: tuple[bool | None, bool]) -> None:
    its = identify(words.split(), "x")
    assert (its.has_vpmu, its.sets_pmu) == told


def test_pmuctl_itself() -> None:
    assert is_pmuctl(["/venv/bin/python", "-P", "/venv/bin/pmuctl", "host", "info"], "pmuctl")
    assert is_pmuctl(["/usr/bin/pmuctl", "run"], "x")
    assert is_pmuctl([], "pmuctl")
    assert not is_pmuctl([QEMU, "pmuctl"], "pmuctl")
    assert not is_pmuctl(["python3", "vmm.py"], "pmuctl")
