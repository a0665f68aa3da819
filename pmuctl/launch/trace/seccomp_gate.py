# SPDX-License-Identifier: Apache-2.0
"""The gate: a seccomp filter that stops one ioctl, and the listener that answers for it."""

import ctypes
import errno
import select
from contextlib import suppress

from pmuctl.launch.trace.arch import Arch
from pmuctl.uapi.ioctl import ioctl
from pmuctl.uapi.kvm import KVM_CREATE_VCPU
from pmuctl.uapi.ptrace import PR_SET_NO_NEW_PRIVS, prctl
from pmuctl.uapi.seccomp import (
    BPF_JMP_JEQ_K,
    BPF_LD_W_ABS,
    BPF_RET_K,
    SECCOMP_FILTER_FLAG_NEW_LISTENER,
    SECCOMP_IOCTL_NOTIF_ID_VALID,
    SECCOMP_IOCTL_NOTIF_RECV,
    SECCOMP_IOCTL_NOTIF_SEND,
    SECCOMP_RET_ALLOW,
    SECCOMP_RET_ERRNO,
    SECCOMP_RET_USER_NOTIF,
    SECCOMP_SET_MODE_FILTER,
    SECCOMP_USER_NOTIF_FLAG_CONTINUE,
    notif_id,
    seccomp,
    seccomp_data,
    seccomp_notif,
    seccomp_notif_resp,
    sock_filter,
)
from pmuctl.value import value


@value
class Notification:
    """A thread that waits at the gate with its KVM_CREATE_VCPU.

    `ident` names this one wait: a signal ends it, and the call made again is another.
    """

    ident: int
    tid: int


def install(arch: Arch) -> int:
    """Install the gate for this thread and all it becomes; return the listener's descriptor.

    Without CAP_SYS_ADMIN the kernel requires no_new_privs first, which then stays. Raise OSError
    (EBUSY if another filter with a listener is in the way).
    """
    program = _build_program(arch)
    operation, flags = SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER
    try:
        return seccomp(arch.nr_seccomp, operation, flags, program)
    except PermissionError:
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        return seccomp(arch.nr_seccomp, operation, flags, program)


def _build_program(arch: Arch) -> "ctypes.Array[sock_filter]":
    """Return a filter that sends KVM_CREATE_VCPU to the listener and allows all else.

    Made by a call for programs of another kind it gives EPERM: such a vCPU could not be followed.
    Only the low 32 bits of a request count (virt/kvm/kvm_main.c takes an unsigned int).
    """
    refused = SECCOMP_RET_ERRNO | errno.EPERM
    answers = [(arch.audit_arch, arch.nr_ioctl, SECCOMP_RET_USER_NOTIF)]
    answers += [(audit_arch, nr, refused) for audit_arch, nr in arch.other_ioctls]
    code = [
        sock_filter(BPF_LD_W_ABS, 0, 0, seccomp_data.args.offset + 8),
        sock_filter(BPF_JMP_JEQ_K, 0, 5 * len(answers), KVM_CREATE_VCPU),
    ]
    for audit_arch, nr, answer in answers:
        code += [
            sock_filter(BPF_LD_W_ABS, 0, 0, seccomp_data.arch.offset),
            sock_filter(BPF_JMP_JEQ_K, 0, 3, audit_arch),
            sock_filter(BPF_LD_W_ABS, 0, 0, seccomp_data.nr.offset),
            sock_filter(BPF_JMP_JEQ_K, 0, 1, nr),
            sock_filter(BPF_RET_K, 0, 0, answer),
        ]
    code.append(sock_filter(BPF_RET_K, 0, 0, SECCOMP_RET_ALLOW))
    return (sock_filter * len(code))(*code)


class Listener:
    """The supervisor's end of the gate."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def receive(self) -> Notification | None:
        """Return the next thread that waits, None if there is none (any more).

        Raise EOFError once no process is behind the gate: to receive again then would wait for
        ever on 6.1 and spin on 7.3.
        """
        ready = self._poll.poll(0)
        if not ready:
            return None
        if not ready[0][1] & select.POLLIN:
            raise EOFError
        notif = seccomp_notif()
        try:
            ioctl(self.fd, SECCOMP_IOCTL_NOTIF_RECV, notif, what="SECCOMP_IOCTL_NOTIF_RECV")
        except (FileNotFoundError, InterruptedError):
            return None  # a signal has interrupted the call since poll()
        return Notification(notif.id, notif.pid)

    def is_valid(self, notification: Notification) -> bool:
        """Return whether the thread still waits: until then its id is no other thread's."""
        ident = notif_id(notification.ident)
        request = SECCOMP_IOCTL_NOTIF_ID_VALID
        try:
            ioctl(self.fd, request, ident, what="SECCOMP_IOCTL_NOTIF_ID_VALID")
        except FileNotFoundError:
            return False
        return True

    def allow(self, notification: Notification) -> None:
        """Let the call be made."""
        self._send_response(notification, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE)

    def deny(self, notification: Notification) -> None:
        """Let the call fail with EPERM."""
        self._send_response(notification, -errno.EPERM, 0)

    def _send_response(self, notification: Notification, error: int, flags: int) -> None:
        """Answer a notification with this negative errno and these flags."""
        response = seccomp_notif_resp(notification.ident, 0, error, flags)
        with suppress(FileNotFoundError):  # the wait was interrupted, and the call comes again
            ioctl(self.fd, SECCOMP_IOCTL_NOTIF_SEND, response, what="SECCOMP_IOCTL_NOTIF_SEND")
