# SPDX-License-Identifier: Apache-2.0
"""Commands that have a service, or another host, start a VM: they are no VMMs, and become none."""

from collections.abc import Mapping, Sequence

from pmuctl.model.vmm.wrappers import unwrap
from pmuctl.value import replace, value


@value(kw_only=True)
class ServiceClient:
    """A command of this kind: who starts the VM, and how to get at the VMM's own command line.

    `program` is the word of the command line that names it.
    """

    starts: str
    fix: str
    program: str = ""


def _client(starts: str, fix: str) -> ServiceClient:
    return ServiceClient(starts=starts, fix=fix)


_LIBVIRT = _client(
    "libvirt's daemon",
    "give QEMU's own command line; virsh domxml-to-native qemu-argv --domain VM prints it",
)
_PROXMOX = _client(
    "Proxmox VE", "give QEMU's own command line; qm showcmd VMID --pretty prints it"
)
_INCUS = _client(
    "the daemon of Incus or LXD",
    "give QEMU's own command line; ps -ww -o args= -C qemu-system-aarch64 prints that of a "
    "running VM",
)
_SYSTEMD = _client("systemd", "put pmuctl run before the VMM in ExecStart= of the unit")
_CONTAINERS = _client(
    "the container engine's daemon", "put pmuctl run before the VMM in the container's command"
)
_KUBERNETES = _client(
    "Kubernetes", "put pmuctl run before the VMM in the command of the pod's container"
)

_CLIENTS: Mapping[str, ServiceClient] = {
    **dict.fromkeys(("virsh", "virt-install", "virt-manager", "gnome-boxes"), _LIBVIRT),
    **dict.fromkeys(("qm", "pvesh", "ha-manager"), _PROXMOX),
    **dict.fromkeys(("incus", "lxc"), _INCUS),
    **dict.fromkeys(("systemctl", "systemd-run", "machinectl"), _SYSTEMD),
    **dict.fromkeys(("docker", "nerdctl", "ctr", "crictl"), _CONTAINERS),
    **dict.fromkeys(("kubectl", "virtctl", "oc"), _KUBERNETES),
    "multipass": _client("Multipass' daemon", "give the VMM's own command line"),
    "ssh": _client("another host", "start it on that host: ssh HOST pmuctl run ..."),
}
"""By program name. podman, vagrant, limactl and quickemu start the VMM themselves."""


def find_service_client(command: Sequence[str]) -> ServiceClient | None:
    """Return what is known of a command that starts no VMM itself; None for any other.

    It may stand behind wrappers, such as sudo, env or sh -c. `systemd-run --scope` is one: it
    executes its command itself.
    """
    words = unwrap(command)
    program = words[0] if words else ""
    client = _CLIENTS.get(program.rpartition("/")[2])
    return None if client is None else replace(client, program=program)
