# SPDX-License-Identifier: Apache-2.0
"""One machine, this one or the captured tree of another: where it is read, and for whom."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from pmuctl.host.sysfs import Sysfs
from pmuctl.model.change_log import ChangeLog

if TYPE_CHECKING:
    from pmuctl.host.kvm.access import Kvm
    from pmuctl.host.procfs import Procfs
    from pmuctl.host.thread_affinity import ThreadAffinity


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
