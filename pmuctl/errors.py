# SPDX-License-Identifier: Apache-2.0
"""Every error pmuctl raises on purpose: one class for each exit status a caller can act on."""

from enum import IntEnum

NOTHING_CHANGED = "nothing was changed"
"""The state that a refusal leaves things in where nothing was touched before it."""


class ExitStatus(IntEnum):
    """What pmuctl's exit status says."""

    OK = 0
    NO = 1
    USAGE = 2
    UNREACHABLE = 3
    NOT_FOUND = 4
    SEALED = 5
    DENIED = 6
    UNSUPPORTED = 7
    REFUSED = 9
    UNKNOWN_OUTCOME = 10
    PARTIAL = 64
    BUG = 70
    OUTPUT = 74
    ENDED = 125
    NOT_EXECUTABLE = 126
    NO_COMMAND = 127
    INTERRUPTED = 130
    PIPE = 141
    TERMINATED = 143


def command(*words: object) -> str:
    """A pmuctl command for somebody to paste into a shell: what it takes from outside is quoted.

    Names are what a process says of itself, and root may be the one who pastes them.
    """
    # here, for a supervisor words no commands, and what it loads every VM costs
    from shlex import join

    return join(["pmuctl", *map(str, words)])


class PmuctlError(Exception):
    """What failed, why, and what to do next; `main()` prints it and exits with `status`.

    `subject` names the VM, PMU, file or socket it is about, `errno` is the symbolic name of the
    kernel's answer ("EBUSY") where there was one, and `now` tells the state things are left in.
    """

    status = ExitStatus.REFUSED

    def __init__(
        self,
        message: str,
        *,
        subject: str | None = None,
        why: str | None = None,
        now: str | None = None,
        fix: str | None = None,
        errno: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.subject = subject
        self.why = why
        self.now = now
        self.fix = fix
        self.errno = errno
        self.applied: tuple[str, ...] | None = None
        """What had been done before the refusal and stays so, in the kernel's words; None where
        nobody said."""


class Stopped(BaseException):
    """A signal asked pmuctl to end; `lost` is what it leaves unanswered, if anything.

    It is no KeyboardInterrupt, which typer makes an exit status of its own of.
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__()
        self.status = status
        self.lost: PmuctlError | None = None


class UsageError(PmuctlError):
    """The words on the command line cannot be carried out: bad value, ambiguous name, range."""

    status = ExitStatus.USAGE


class UnreachableError(PmuctlError):
    """The target exists but does not answer, and nothing was sent to it."""

    status = ExitStatus.UNREACHABLE


class NotFoundError(PmuctlError):
    """There is no such VM, PMU, event or CPU."""

    status = ExitStatus.NOT_FOUND


class SealedError(PmuctlError):
    """KVM does not take it any more in this VM (EBUSY)."""

    status = ExitStatus.SEALED


class DeniedError(PmuctlError):
    """The caller lacks the permission."""

    status = ExitStatus.DENIED


class UnsupportedError(PmuctlError):
    """This CPU, kernel, VMM or VM cannot do it."""

    status = ExitStatus.UNSUPPORTED


class RefusedError(PmuctlError):
    """The VMM or the kernel refused for another reason, or answered what it should not."""

    status = ExitStatus.REFUSED


class PinnedError(RefusedError):
    """A vCPU thread may not run on any CPU it would have to, and a pin is never widened."""


class UnknownThreadsError(RefusedError):
    """Which threads run the vCPUs of a VM is not known."""


class GoneError(NotFoundError):
    """It was there when it was looked for, and has ended since."""


class NoVmError(RefusedError):
    """The process that listens at a control socket has no KVM VM open: not yet, or no more."""


class UnknownOutcomeError(PmuctlError):
    """It was sent, but no answer came: nobody knows yet whether it was done."""

    status = ExitStatus.UNKNOWN_OUTCOME


class OutputError(PmuctlError):
    """The result could not be written."""

    status = ExitStatus.OUTPUT


class NotExecutableError(PmuctlError):
    """The command to start is there, but cannot be executed."""

    status = ExitStatus.NOT_EXECUTABLE


class NoCommandError(PmuctlError):
    """There is no such command to start."""

    status = ExitStatus.NO_COMMAND


def class_of(status: int) -> type[PmuctlError] | None:
    """The class of errors that end pmuctl with this status; None where there is none."""
    return next((cls for cls in PmuctlError.__subclasses__() if cls.status == status), None)
