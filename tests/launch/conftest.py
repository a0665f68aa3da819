# SPDX-License-Identifier: Apache-2.0
"""Fixtures for the engine's tests: commands started behind the gate, and ended at the end."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from pmuctl.launch.spec import LaunchSpec
from tests.launch.native import Behind, Gated, fresh_name, need, no_gate, no_kvm
from tests.skips import skip

Start = Callable[..., Gated]


@pytest.fixture
def room() -> Iterator[Path]:
    """A directory that any user may write to, with a path short enough for sockets."""
    path = Path(tempfile.mkdtemp(prefix="pmuctl-launch-"))
    path.chmod(0o777)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start(room: Path) -> Iterator[Start]:
    """Starts a command behind the gate: start(*words, prefix=…, orders…, **how of Gated)."""
    with ExitStack() as stack:

        def started(
            *words: str, prefix: str = "t", orders: dict[str, Any] | None = None, **how: Any
        ) -> Gated:
            name = fresh_name(prefix)
            its = LaunchSpec(
                name=name, socket=room / f"{name}.log", command=words, **(orders or {})
            )
            gated = Gated(its, **how)
            stack.callback(gated.close)
            return gated

        yield started


@pytest.fixture
def kvm(start: Start) -> Start:
    """The same, where this machine has KVM and the VMM of these tests runs."""
    need(no_kvm())
    return start


@pytest.fixture
def gate(start: Start) -> Start:
    """The same, where this machine lets a gate be put up."""
    need(no_gate())
    return start


@pytest.fixture
def two_cpus() -> tuple[int, int]:
    """Two CPUs that this process may run on."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        skip("this needs two CPUs", runs="where this process may use two")
    return cpus[0], cpus[1]


@pytest.fixture
def behind(room: Path) -> Behind:
    need(no_gate())
    room.chmod(0o755)
    return Behind(room)
