# SPDX-License-Identifier: Apache-2.0
"""Commands that have a service start a VM, told from those that start it themselves."""

import shlex

import pytest

from pmuctl.model.vmm.service_client import find_service_client


@pytest.mark.parametrize(
    ("command", "fix"),
    [
        ("virsh start web1", "virsh domxml-to-native qemu-argv --domain VM"),
        ("/usr/bin/virt-install --name web1", "virsh domxml-to-native"),
        ("qm start 100", "qm showcmd VMID"),
        ("incus start web1", "ps -ww -o args= -C qemu-system-aarch64"),
        ("lxc launch --vm images:debian/12", "ps -ww"),
        ("systemctl start web1", "ExecStart="),
        ("systemd-run qemu-system-aarch64", "ExecStart="),
        ("docker run web1", "container"),
        ("virtctl start web1", "pod"),
        ("ssh host qemu-system-aarch64", "ssh HOST pmuctl run"),
    ],
)
def test_a_client_gets_what_to_do_instead(command: str, fix: str) -> None:
    client = find_service_client(command.split())
    assert client is not None
    assert fix in client.fix


WRAPPED = (
    "sudo virsh start web1",
    "sudo -u root -n virsh start web1",
    "sudo -nu root -- virsh start web1",
    "sudo -uroot A=b virsh start web1",
    "sudo --user root virsh start web1",
    "sudo --user=root virsh start web1",
    "env virsh start web1",
    "env -i A=b PATH=/bin virsh start web1",
    "/usr/bin/env - virsh start web1",
    "env -u A virsh start web1",
    "doas -u root virsh start web1",
    "nice virsh start web1",
    "nice -n 5 virsh start web1",
    "nice -5 virsh start web1",
    "ionice -c 3 virsh start web1",
    "setsid -f virsh start web1",
    "nohup virsh start web1",
    "timeout -k 5 60 virsh start web1",
    "taskset -c 0-3 virsh start web1",
    "chrt -f 50 virsh start web1",
    "numactl -N 0 virsh start web1",
    "stdbuf -oL virsh start web1",
    "flock -n /run/lock/x virsh start web1",
    "systemd-run --scope -p MemoryMax=1G virsh start web1",
    "systemd-run --scope --unit x -- virsh start web1",
    "runuser -u root -- virsh start web1",
    "sh -c 'virsh start web1'",
    "bash -ec 'exec virsh start web1'",
    "bash --norc -o pipefail -c 'A=b virsh start web1 >/dev/null 2>&1'",
    "sh -c 'virsh start \"$1\"' sh web1",
    "sudo sh -c 'nice env LANG=C virsh -c qemu:///system start web1'",
)


@pytest.mark.parametrize("command", WRAPPED)
def test_a_client_is_found_behind_what_executes_it(command: str) -> None:
    client = find_service_client(shlex.split(command))
    assert client == find_service_client(["virsh", "start", "web1"])


def test_it_is_named_as_it_was_typed() -> None:
    client = find_service_client(["sudo", "/usr/bin/virsh", "start", "web1"])
    assert client is not None
    assert client.program == "/usr/bin/virsh"


@pytest.mark.parametrize(
    "command",
    [
        "qemu-system-aarch64 -name virsh",
        "sudo -u virsh qemu-system-aarch64",
        "env VMM=virsh qemu-system-aarch64",
        "env -S 'virsh start web1'",
        "sh virsh start web1",
        "sh -x ./virsh",
        "sh -c 'virsh net-start default; exec qemu-system-aarch64'",
        "sh -c 'virsh net-start default && exec qemu-system-aarch64'",
        "sh -c 'echo virsh'",
        "sh -c '# virsh'",
        "sh -c 'qemu-system-aarch64 $(virsh)'",
        "sh -c 'virsh\nqemu-system-aarch64'",
        "sh -c '\"'",
        "bash",
        "timeout virsh",
        "taskset -p virsh",
        "sudo -l virsh",
        "systemd-run --scope qemu-system-aarch64 virsh",
        "nice -n virsh lkvm",
        "lkvm run",
        "podman run web1",
        "systemd-run --scope qemu-system-aarch64",
        "virsh.sh",
        "",
    ],
)
def test_no_other_command_is_one(command: str) -> None:
    assert find_service_client(shlex.split(command)) is None
