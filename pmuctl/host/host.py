# SPDX-License-Identifier: Apache-2.0
"""One machine, this one or a captured tree: where it is read, for whom, what was changed on it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pmuctl.errors import NOTHING_CHANGED, PmuctlError
from pmuctl.host.sysfs import Sysfs

if TYPE_CHECKING:
    from pmuctl.host.kvm.access import Kvm
    from pmuctl.host.procfs import Procfs
    from pmuctl.host.thread_affinity import ThreadAffinity


class ChangeLog:
    """The steps that a command has taken, by VM and in order.

    Whatever ends the command before it has written its results, the error that is printed then
    says what stands (`complete`). A step is added before it is taken: what is interrupted is told
    rather than not.
    """

    def __init__(self) -> None:
        self._steps: dict[str, list[str]] = {}

    def add(self, vm: str, steps: Iterable[str]) -> None:
        """Add steps of a VM."""
        if new := list(steps):
            self._steps.setdefault(vm, []).extend(new)

    def remove(self, vm: str, step: str) -> None:
        """Remove a step of a VM that was not taken, or was undone."""
        steps = self._steps[vm]
        steps.remove(step)
        if not steps:
            del self._steps[vm]

    def clear(self) -> None:
        """Forget the steps: they have been told."""
        self._steps.clear()

    def complete(self, error: PmuctlError | None) -> PmuctlError | None:
        """Tell all steps in the `now` of an error, and forget them; return that error.

        Without one, return an error that has them, None if there is nothing to tell. An error
        that tells the state of its own VM is believed.
        """
        tells_own = error is not None and error.now not in (None, NOTHING_CHANGED)
        steps = [
            f"{vm}: {step}"
            for vm, taken in self._steps.items()
            for step in taken
            if not (tells_own and error is not None and vm == error.subject)
        ]
        self.clear()
        if not steps:
            return error
        if error is None:
            error = PmuctlError("stopped before the result of a change was written")
        now = f"done: {'; '.join(steps)}"
        error.now = f"{now}; {error.now}" if tells_own else now
        return error


class Host:
    """A machine as one user sees it: its sysfs, processes, threads and KVM.

    `environ` and `uid` are those of the user who acts. What is not given is this machine's, and
    imported when it is first used: most commands need little of it. If `is_live` is False, it is
    the captured tree of another machine, which can be read and nothing else.
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str],
        uid: int,
        sysfs: Sysfs | None = None,
        procs: "Procfs | None" = None,
        threads: "ThreadAffinity | None" = None,
        kvm: "Kvm | None" = None,
        is_live: bool = True,
    ) -> None:
        self.environ = environ
        self.uid = uid
        self.sysfs = sysfs or Sysfs()
        self.is_live = is_live
        self.changes = ChangeLog()
        """What was changed on it and not yet told."""
        self._procs = procs
        self._threads = threads
        self._kvm = kvm

    def captured(self, root: Path) -> "Host":
        """Return the machine whose captured tree is at `root`, seen by the same user."""
        return Host(environ=self.environ, uid=self.uid, sysfs=Sysfs(root), is_live=False)

    @property
    def procs(self) -> "Procfs":
        """Its processes."""
        if self._procs is None and self.is_live:
            from pmuctl.host.procfs import Procfs

            self._procs = Procfs()
        elif self._procs is None:
            from pmuctl.host.captured_procfs import CapturedProcfs

            self._procs = CapturedProcfs(self.sysfs.root / "proc")
        return self._procs

    @property
    def threads(self) -> "ThreadAffinity":
        """The CPU masks of its threads; raise ValueError in a captured tree, which has none."""
        if not self.is_live:
            raise ValueError("a captured tree has no threads to be placed")
        if self._threads is None:
            from pmuctl.host.thread_affinity import ThreadAffinity

            self._threads = ThreadAffinity()
        return self._threads

    @property
    def kvm(self) -> "Kvm | None":
        """Its KVM; None if it is captured, or is not the machine that this process runs on."""
        if self._kvm is None and self.is_live and self.sysfs.is_live:
            from pmuctl.host.kvm.access import Kvm

            self._kvm = Kvm()
        return self._kvm
