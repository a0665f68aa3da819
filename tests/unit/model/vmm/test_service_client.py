# SPDX-License-Identifier: Apache-2.0
"""Commands that have a service start a VM, told from those that start it themselves."""

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


@pytest.mark.parametrize(
    "command",
    [
        "qemu-system-aarch64 -name virsh",
        "sh -c virsh",
        "lkvm run",
        "podman run web1",
        "systemd-run --scope qemu-system-aarch64",
        "virsh.sh",
        "",
    ],
)
def test_no_other_command_is_one(command: str) -> None:
    assert find_service_client(command.split()) is None
