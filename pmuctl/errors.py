# SPDX-License-Identifier: Apache-2.0
"""The errors that pmuctl raises on purpose: one class for each exit status a caller acts on."""

from enum import IntEnum

NOTHING_CHANGED = "nothing was changed"
"""The state that a refusal leaves behind if nothing was changed before it."""


class ExitStatus(IntEnum):
    """The exit statuses of pmuctl."""

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
    """Return a pmuctl command for a user to paste into a shell; its words are quoted.

    Names are what a process says of itself, and it may be root who pastes them.
    """
    # a supervisor makes no such command, and each module that it loads costs memory per VM
    from shlex import join

    return join(["pmuctl", *map(str, words)])


def forget_frames(error: BaseException) -> None:
    """Take traceback, cause and context from an error that is kept.

    They would keep what is in the frames it came through, such as the message of a peer.
    """
    error.__traceback__ = error.__cause__ = error.__context__ = None


class PmuctlError(Exception):
    """What failed, why, and what to do next; `main()` prints it and exits with `status`.

    `subject` names the VM, PMU, file or socket it is about. `errno` is the symbolic name of the
    kernel's answer ("EBUSY") if there was one. `now` is the state in which things are left.
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
        """The steps, in the kernel's terms, that were applied before the refusal and stay applied;
        None if nobody said."""


class Stopped(BaseException):
    """A signal asked pmuctl to end; `lost` is the error for what stays unanswered, if anything.

    It is no KeyboardInterrupt, because typer turns that into an exit status of its own.
    """

    def __init__(self, status: ExitStatus) -> None:
        super().__init__()
        self.status = status
        self.lost: PmuctlError | None = None


class UsageError(PmuctlError):
    """The command line cannot be carried out: a bad value, an ambiguous name, a bad range."""

    status = ExitStatus.USAGE


class WrongWordError(UsageError):
    """Words that mean nothing here, but clearly stand for others, such as those of another tool.

    `words` are consecutive words of the command line (one may also be a part of a comma list),
    `right` is what to write in their place. The command line is not known where this is raised:
    `main()` makes `fix` the whole line with the right words.
    """

    def __init__(
        self, message: str, *, words: tuple[str, ...], right: tuple[str, ...], why: str | None
    ) -> None:
        super().__init__(message, why=why, fix=f"write {' '.join(right)}")
        self.words = words
        self.right = right


class UnreachableError(PmuctlError):
    """The target exists but does not answer, and nothing was sent to it."""

    status = ExitStatus.UNREACHABLE


class NotFoundError(PmuctlError):
    """There is no such VM, PMU, event or CPU."""

    status = ExitStatus.NOT_FOUND


class SealedError(PmuctlError):
    """KVM does not take the setting any more in this VM (EBUSY)."""

    status = ExitStatus.SEALED


class DeniedError(PmuctlError):
    """The caller lacks the permission."""

    status = ExitStatus.DENIED


class UnsupportedError(PmuctlError):
    """This CPU, kernel, VMM or VM does not support it."""

    status = ExitStatus.UNSUPPORTED


class RefusedError(PmuctlError):
    """The VMM or the kernel refused for another reason, or gave a wrong answer."""

    status = ExitStatus.REFUSED


class PinnedError(RefusedError):
    """A vCPU thread may run on none of the wanted CPUs, and a pin is never widened."""


class UnknownThreadsError(RefusedError):
    """It is not known which threads run the vCPUs of a VM."""


class GoneError(NotFoundError):
    """A VM or process that was found has ended since."""


class NoVmError(RefusedError):
    """The process that listens at a control socket has no KVM VM open: not yet, or no more."""


class UnknownOutcomeError(PmuctlError):
    """A command was sent, but no answer came: nobody knows yet whether it was carried out."""

    status = ExitStatus.UNKNOWN_OUTCOME


class OutputError(PmuctlError):
    """The result could not be written."""

    status = ExitStatus.OUTPUT


class NotExecutableError(PmuctlError):
    """The command to start exists, but cannot be executed."""

    status = ExitStatus.NOT_EXECUTABLE


class NoCommandError(PmuctlError):
    """The command to start does not exist."""

    status = ExitStatus.NO_COMMAND


def class_of(status: int) -> type[PmuctlError] | None:
    """Return the class of errors that end pmuctl with this status; None if there is none."""
    return next((cls for cls in PmuctlError.__subclasses__() if cls.status == status), None)
