# SPDX-License-Identifier: Apache-2.0
"""Threads that spin: what their times at two moments say, and whose times those are."""

from collections.abc import Callable
from pathlib import Path

from pmuctl.host.procfs import Procfs, ThreadTimes
from pmuctl.manage.diagnosis.spinning import ThreadId, measure_spin_shares, spin_share

FIRST, SECOND = ThreadId(11, 12), ThreadId(11, 13)


def write(proc: Path, its: ThreadId, user: int, system: int, guest: int, start: int = 5) -> None:
    """A thread's stat, in the form of proc_pid_stat(5)."""
    fields = ["0"] * 50
    fields[0] = "R"
    for number, value in ((14, user), (15, system), (22, start), (43, guest)):
        fields[number - 3] = str(value)
    path = proc / str(its.pid) / "task" / str(its.tid) / "stat"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{its.tid} (CPU 0) R) {' '.join(fields)}\n")


def test_the_share_is_that_of_a_cpu_outside_the_guest() -> None:
    then = ThreadTimes(start=5, busy=100, guest=10)
    assert spin_share(then, ThreadTimes(start=5, busy=130, guest=10), 0.3) == 1.0
    assert spin_share(then, ThreadTimes(start=5, busy=115, guest=10), 0.3) == 0.5
    assert spin_share(then, ThreadTimes(start=5, busy=130, guest=11), 0.3) == 0.0
    # a tick more than the time that has passed is no more than a whole CPU
    assert spin_share(then, ThreadTimes(start=5, busy=140, guest=10), 0.3) == 1.0


def test_another_thread_with_its_id_is_another() -> None:
    then = ThreadTimes(start=5, busy=100, guest=10)
    assert spin_share(then, ThreadTimes(start=6, busy=130, guest=10), 0.3) is None


def resting(act: Callable[[], None], seconds: float = 0.5) -> Callable[[], float]:
    """Instead of resting something happens."""

    def rest() -> float:
        act()
        return seconds

    return rest


def test_all_threads_are_looked_at_over_one_rest(tmp_path: Path) -> None:
    rests: list[None] = []
    write(tmp_path, FIRST, 100, 20, 0)
    write(tmp_path, SECOND, 100, 20, 0)

    def act() -> None:
        rests.append(None)
        write(tmp_path, FIRST, 120, 50, 0)
        write(tmp_path, SECOND, 150, 20, 50)

    found = measure_spin_shares([FIRST, SECOND], Procfs(tmp_path), sleep=resting(act))
    assert (found, len(rests)) == ({FIRST: 1.0, SECOND: 0.0}, 1)


def test_threads_that_come_and_go_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, FIRST, 100, 20, 0)

    def act() -> None:
        write(tmp_path, FIRST, 200, 20, 0, start=6)
        write(tmp_path, SECOND, 100, 20, 0)

    assert measure_spin_shares([FIRST, SECOND], Procfs(tmp_path), sleep=resting(act)) == {}
    write(tmp_path, FIRST, 100, 20, 0)
    path = tmp_path / "11/task/12/stat"
    assert measure_spin_shares([FIRST], Procfs(tmp_path), sleep=resting(path.unlink)) == {}
    path.write_text("12 (x) R 1 2\n")
    assert Procfs(tmp_path).thread_times(*FIRST) is None


def test_nobody_to_look_at_takes_no_rest(tmp_path: Path) -> None:
    def act() -> None:
        raise AssertionError

    assert measure_spin_shares([], Procfs(tmp_path), sleep=resting(act)) == {}
