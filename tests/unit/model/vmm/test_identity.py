# SPDX-License-Identifier: Apache-2.0
"""What command lines and thread names of VMMs tell."""

import time

import pytest

from pmuctl.model.vmm.identity import (
    VmmKind,
    identify,
    is_pmuctl,
    kind_of_threads,
    names_vmm,
    vcpu_of_thread,
)

UUID = "6695eb01-f6a4-8304-79aa-97f2502e193f"
OTHER = "11111111-2222-3333-4444-555555555555"
QEMU = "/usr/bin/qemu-system-aarch64"


@pytest.mark.parametrize(
    ("comm", "index"),
    [
        ("kvm-vcpu-3", 3),
        ("crosvm_vcpu0", 0),
        ("crosvm_vcpu1023", 1023),
        ("vcpu12", 12),
        ("vcpu_2", 2),
        ("vcpu-2", 2),
        ("vcpu 2", 2),
        ("fc_vcpu 1", 1),
        ("fc_vcpu0", 0),
        ("db_vcpu15", 15),
        ("CPU 7/KVM", 7),
        ("CPU 7/TCG", None),
        ("vcpu", None),
        ("db_vcpu", None),
        ("xx_vcpu1", None),
        ("kvm-vcpu-", None),
        ("kvm-vcpu-" + "9" * 12, None),
        ("CPU 1/KVM ", None),
        ("", None),
    ],
)
def test_threads_of_vcpus(comm: str, index: int | None) -> None:
    assert vcpu_of_thread(comm) == index


@pytest.mark.parametrize(
    ("program", "kind"),
    [
        ("qemu-system-aarch64", VmmKind.QEMU),
        ("/usr/bin/qemu-system-aarch64-8.2", VmmKind.QEMU),
        ("/opt/emulator/qemu-system-aarch64-headless", VmmKind.QEMU),
        ("qemu-system-arm", VmmKind.QEMU),
        ("qemu-lite-system-aarch64", VmmKind.QEMU),
        ("qemu-8.2.0-system-aarch64", VmmKind.QEMU),
        ("/usr/bin/kvm", VmmKind.QEMU),
        ("kvm-spice", VmmKind.QEMU),
        ("/usr/libexec/qemu-kvm", VmmKind.QEMU),
        ("qemu-kvm-9.1", VmmKind.QEMU),
        ("qemu", VmmKind.QEMU),
        ("/nix/store/0a-qemu/bin/.qemu-system-aarch64-wrapped", VmmKind.QEMU),
        ("..qemu-kvm-wrapped-wrapped", VmmKind.QEMU),
        (".kvm-wrapped", VmmKind.QEMU),
        ("lkvm", VmmKind.KVMTOOL),
        ("lkvm-static", VmmKind.KVMTOOL),
        ("kvmtool", VmmKind.KVMTOOL),
        ("./crosvm", VmmKind.CROSVM),
        ("crosvm-aarch64", VmmKind.CROSVM),
        (".crosvm-wrapped", VmmKind.CROSVM),
        ("./cloud-hypervisor-static-aarch64", VmmKind.CLOUD_HYPERVISOR),
        ("cloud-hypervisor-v41.0", VmmKind.CLOUD_HYPERVISOR),
        ("firecracker-v1.7.0-aarch64", VmmKind.FIRECRACKER),
        ("/firecracker", VmmKind.FIRECRACKER),
        ("/usr/bin/stratovirt", VmmKind.STRATOVIRT),
        ("stratovirt-2.4.0", VmmKind.STRATOVIRT),
        ("/opt/kata/runtime-rs/bin/containerd-shim-kata-v2", VmmKind.DRAGONBALL),
        ("dragonball", VmmKind.DRAGONBALL),
        ("muvm", VmmKind.LIBKRUN),
        ("krunvm", VmmKind.LIBKRUN),
        ("/root/.microsandbox/bin/msb", VmmKind.LIBKRUN),
        ("msbrun", VmmKind.LIBKRUN),
        ("krun", VmmKind.LIBKRUN),
        ("[libcrun:krun]", VmmKind.LIBKRUN),
        ("[libcrun:krun] /bin/sh -c x", VmmKind.LIBKRUN),
        ("alioth", VmmKind.ALIOTH),
        ("containerd-shim-runc-v2", None),
        ("qemu-aarch64-static", None),
        ("qemu-img", None),
        ("kvm-unit-tests", None),
        ("vm", None),
        ("myqemu-kvm", None),
        ("." * 1_000_000, None),
        ("." + "-wrapped" * 100_000, None),
        ("", None),
    ],
)
def test_a_vmm_is_known_by_its_program_also_versioned_static_or_wrapped(
    program: str, kind: VmmKind | None
) -> None:
    assert identify([program], "x").kind is kind
    assert names_vmm([program]) is (kind is not None)


@pytest.mark.parametrize(
    ("comm", "kind"),
    [
        ("qemu-system-aar", VmmKind.QEMU),
        (".qemu-system-aa", VmmKind.QEMU),
        ("..qemu-system-a", VmmKind.QEMU),
        ("kvm", VmmKind.QEMU),
        ("qemu-kvm", VmmKind.QEMU),
        ("lkvm", VmmKind.KVMTOOL),
        ("cloud-hyperviso", VmmKind.CLOUD_HYPERVISOR),
        (".cloud-hypervis", VmmKind.CLOUD_HYPERVISOR),
        (".crosvm-wrapped", VmmKind.CROSVM),
        (".firecracker-wr", VmmKind.FIRECRACKER),
        ("firecracker-v1.", VmmKind.FIRECRACKER),
        ("stratovirt", VmmKind.STRATOVIRT),
        ("muvm", VmmKind.LIBKRUN),
        ("libkrun VM", VmmKind.LIBKRUN),
        ("VM:3f8c1d2e4a5b", VmmKind.LIBKRUN),
        ("containerd-shim", None),
        ("python3", None),
        ("", None),
    ],
)
def test_where_the_command_line_names_no_vmm_the_name_of_the_main_thread_does(
    comm: str, kind: VmmKind | None
) -> None:
    assert identify([], comm).kind is kind
    assert identify(["web server"], comm).kind is kind
    assert not names_vmm(["web server"])


def test_the_command_line_goes_before_the_name_of_the_main_thread() -> None:
    assert identify(["firecracker"], "qemu-system-aar").kind is VmmKind.FIRECRACKER
    assert identify([QEMU, "-name", "guest=a,process=crosvm"], "crosvm").kind is VmmKind.QEMU


@pytest.mark.parametrize(
    ("argv", "comm", "kind"),
    [
        (["x", "-name", "guest=a,process=my-vm"], "my-vm", VmmKind.QEMU),
        (["x", "-name", "a,process=a-very-long-name-of-a-vm"], "a-very-long-nam", VmmKind.QEMU),
        (["x", "-name", "guest=a,process=my-vm"], "other", None),
        (["x", "-name", "guest=a,process="], "", None),
        (["x", "-name", "my-vm"], "my-vm", None),
        (["x", "-name", "a,process=\udcff"], "\udcff", None),
    ],
)
def test_a_qemu_that_renamed_itself_is_known_by_its_option(
    argv: list[str], comm: str, kind: VmmKind | None
) -> None:
    assert identify(argv, comm).kind is kind


@pytest.mark.parametrize(
    ("argv", "kind"),
    [
        (["vm", "run", "-k", "Image"], VmmKind.KVMTOOL),
        (["/usr/bin/vm", "sandbox", "--", "sh"], VmmKind.KVMTOOL),
        (["vm", "list"], None),
        (["kvm", "run", "--kernel", "Image"], VmmKind.KVMTOOL),
        (["kvm", "-name", "run"], VmmKind.QEMU),
    ],
)
def test_kvmtools_other_names_count_with_its_commands(
    argv: list[str], kind: VmmKind | None
) -> None:
    assert identify(argv, "x").kind is kind


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
        ([QEMU, "-name", "guest=a,,,debug-threads=on"], VmmKind.QEMU, "a,", None),
        ([QEMU, "-name", "a,,,,b"], VmmKind.QEMU, "a,,b", None),
        ([QEMU, "-name=web1"], VmmKind.QEMU, None, None),
        ([QEMU, "-name", "a", "-name", "debug-threads=on"], VmmKind.QEMU, "a", None),
        ([QEMU, "-name", "a", "-name", "guest=b"], VmmKind.QEMU, "b", None),
        ([QEMU, "-name", "guest=a,process=my-vm"], VmmKind.QEMU, "a", None),
        ([QEMU, "-uuid", "1"], VmmKind.QEMU, None, None),
        ([QEMU, "-uuid", OTHER, "-uuid", UUID], VmmKind.QEMU, None, UUID),
        ([QEMU, "-smbios", f"type=1,uuid={UUID}"], VmmKind.QEMU, None, UUID),
        ([QEMU, "-smbios", f"uuid={UUID},serial=a,,b,type=0x1"], VmmKind.QEMU, None, UUID),
        ([QEMU, "-smbios", f"type=2,uuid={UUID}"], VmmKind.QEMU, None, None),
        ([QEMU, "-smbios", f"type=11,uuid={UUID}"], VmmKind.QEMU, None, None),
        ([QEMU, "-smbios", f"type=1,serial=a,,uuid={UUID}"], VmmKind.QEMU, None, None),
        ([QEMU, "-uuid", UUID, "-smbios", "type=1,serial=x"], VmmKind.QEMU, None, UUID),
        ([QEMU, "-uuid", OTHER, "-smbios", f"type=1,uuid={UUID}"], VmmKind.QEMU, None, UUID),
        ([QEMU, "-smbios", f"type=1,uuid={OTHER}", "-uuid", UUID], VmmKind.QEMU, None, UUID),
        (
            [
                *("/usr/bin/kvm", "-id", "100", "-name", "qemuvm,debug-threads=on", "-smbios"),
                f"type=1,base64=1,manufacturer=WA==,uuid={UUID.upper()}",
            ],
            *(VmmKind.QEMU, "qemuvm", UUID),
        ),
        (["microvm@a", "-name", "my-vm"], None, None, None),
        (["/usr/libexec/qemu-kvm", "-name", "Windows 11"], VmmKind.QEMU, "Windows 11", None),
        (["lkvm", "run", "--name", "k1"], VmmKind.KVMTOOL, "k1", None),
        (["lkvm", "run", "-n", "mode=none", "--pmu"], VmmKind.KVMTOOL, "guest-77", None),
        (["lkvm", "run", "--name", "a", "-n", "mode=tap", "--name=b"], VmmKind.KVMTOOL, "b", None),
        (["lkvm", "sandbox", "--", "sh", "--name", "x"], VmmKind.KVMTOOL, "guest-77", None),
        (["vm", "run"], VmmKind.KVMTOOL, "guest-77", None),
        (["crosvm", "run", "--name=c1"], VmmKind.CROSVM, "c1", None),
        (["firecracker", "--id", "f1"], VmmKind.FIRECRACKER, "f1", None),
        (["firecracker", "--id=f1"], VmmKind.FIRECRACKER, "f1", None),
        (["firecracker"], VmmKind.FIRECRACKER, None, None),
        (["stratovirt", "-name", "s1", "-uuid", UUID], VmmKind.STRATOVIRT, "s1", UUID),
        (["stratovirt", "-smbios", f"type=1,uuid={UUID}"], VmmKind.STRATOVIRT, None, UUID),
        (["containerd-shim-kata-v2", "-id", "0f3d"], VmmKind.DRAGONBALL, "0f3d", None),
        (["muvm", "--", "steam", "--name", "x"], VmmKind.LIBKRUN, None, None),
        (["krunvm", "start", "--cpus", "2", "k1", "sh"], VmmKind.LIBKRUN, "k1", None),
        (["krunvm", "start", "--cpus=2", "k1"], VmmKind.LIBKRUN, "k1", None),
        (["krunvm", "list", "k1"], VmmKind.LIBKRUN, None, None),
        (["msb", "sandbox", "--name", "m1"], VmmKind.LIBKRUN, "m1", None),
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
    its = identify(argv, "x", pid=77)
    assert (its.kind, its.name, its.uuid) == (kind, name, uuid)


@pytest.mark.parametrize(
    ("argv", "comm", "kind", "name"),
    [
        ("microvm@my-vm -name other -M virt", "qemu-system-aar", VmmKind.QEMU, "other"),
        ("microvm@my-vm -M virt", ".qemu-system-aa", VmmKind.QEMU, "my-vm"),
        ("microvm@my-vm --cpus boot=1", "cloud-hyperviso", VmmKind.CLOUD_HYPERVISOR, "my-vm"),
        ("microvm@my-vm --config-file x", "firecracker", VmmKind.FIRECRACKER, "my-vm"),
        ("microvm@my-vm run --name c1", "crosvm", VmmKind.CROSVM, "c1"),
        ("microvm@a/b -M virt", "qemu-system-aar", VmmKind.QEMU, None),
    ],
)
def test_microvm_nix_tells_the_name_in_place_of_the_program(
    argv: str, comm: str, kind: VmmKind, name: str | None
) -> None:
    its = identify(argv.split(), comm)
    assert (its.kind, its.name) == (kind, name)


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
        ("firecracker-v1.7.0-aarch64 --id f1", (False, False)),
        ("lkvm run --pmu --no-pmu", (False, False)),
        ("lkvm sandbox -- --pmu", (False, False)),
        ("muvm -- steam", (False, False)),
        ("stratovirt -cpu host", (False, False)),
        ("stratovirt -cpu host,pmu=on", (True, False)),
        ("stratovirt -cpu pmu=on", (True, False)),
        ("containerd-shim-kata-v2 -id x", (None, False)),
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


def test_an_endless_list_of_options_is_read_in_one_pass() -> None:
    begin = time.monotonic()
    for text in ("," * 1_000_000, "a" * 1_000_000, "a," * 500_000, "a,,,b" * 200_000):
        identify([QEMU, "-name", text, "-smbios", text], "x")
    assert time.monotonic() - begin < 20


def test_a_vmm_that_a_dynamic_loader_starts_keeps_its_name_and_uuid() -> None:
    argv = ["/lib/ld-linux-aarch64.so.1", "--library-path", "/opt/lib", QEMU, "-name", "web1"]
    assert names_vmm(argv)
    identity = identify([*argv, "-uuid", UUID], "ld-linux-aarch6")
    assert (identity.kind, identity.name, identity.uuid) == (VmmKind.QEMU, "web1", UUID)


@pytest.mark.parametrize(
    ("comms", "kind"),
    [
        (("agent", "fc_vcpu 0", "fc_vcpu 1"), VmmKind.LIBKRUN),
        (("agent", "fc_api", "fc_vcpu 0"), VmmKind.FIRECRACKER),
        (("agent", "db_vcpu0"), VmmKind.DRAGONBALL),
        (("agent", "crosvm_vcpu0"), VmmKind.CROSVM),
        (("agent", "kvm-vcpu-0"), VmmKind.KVMTOOL),
        (("agent", "CPU 0/KVM"), VmmKind.QEMU),
        (("agent", "vcpu0", "vcpu1"), None),  # of several
        (("agent", "CPU 0/TCG", "xfc_vcpu 0", "fc_vcpu"), None),
        ((), None),
    ],
)
def test_a_program_that_is_not_known_is_known_by_its_threads(
    comms: tuple[str, ...], kind: VmmKind | None
) -> None:
    assert kind_of_threads(comms) == kind


def test_threads_tell_a_vmm_only_if_its_names_do_not() -> None:
    assert identify(["crosvm", "run"], "crosvm", kind=VmmKind.QEMU).kind is VmmKind.CROSVM
    assert identify(["my", "run", "--pmu"], "my", kind=VmmKind.KVMTOOL).has_vpmu
    assert identify(["my", "test"], "my", kind=VmmKind.KVMTOOL).kind is None
    krun = identify(["agent"], "agent", kind=VmmKind.LIBKRUN)
    assert krun.kind is VmmKind.LIBKRUN
    assert krun.gives_no_vpmu
