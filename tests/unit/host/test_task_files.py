# SPDX-License-Identifier: Apache-2.0
"""What tasks share, as the running kernel tells."""

import os
from pathlib import Path

from pmuctl.host.procfs import Procfs


def test_nothing_is_known_of_the_tasks_of_a_captured_tree(tmp_path: Path) -> None:
    """Their ids may be those of tasks here."""
    pid, captured = os.getpid(), Procfs(tmp_path)
    assert captured.is_same_file(pid, 0, pid, 0) is None
    assert captured.shares_memory(pid, pid) is None
    assert captured.shares_fds(pid, pid) is None
