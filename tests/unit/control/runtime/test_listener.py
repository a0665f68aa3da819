# SPDX-License-Identifier: Apache-2.0
"""Who gets to listen at a control socket, and what is left of it."""

import fcntl
import grp
import os
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from pmuctl.control.runtime.listener import SUN_PATH_MAX, bind_control_socket
from pmuctl.errors import DeniedError, PmuctlError, RefusedError, UsageError
from pmuctl.host.procfs import Procfs
from tests.skips import only_root, only_users
from tests.unit.control.runtime.conftest import leave_socket

as_root = only_root("only root can be another user")
as_user = only_users("root may write everywhere")
NOBODY = 65534


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def connects(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as its:
        return its.connect_ex(str(path)) == 0


def stat_of(root: Path, pid: int, start: int) -> None:
    """In this procfs, a process that started then."""
    (root / str(pid)).mkdir(parents=True, exist_ok=True)
    fields = ["S", *["0"] * 18, str(start), "0"]
    (root / str(pid) / "stat").write_text(f"{pid} (a) b) {' '.join(fields)}\n")


@pytest.mark.parametrize("mask", [0, 0o022, 0o077, 0o177, 0o777])
def test_modes_do_not_depend_on_the_umask(place: Path, mask: int) -> None:
    path = place / "run" / "web1.sock"
    with umask(mask), bind_control_socket(path, group="no such group"):
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE((path.parent / ".lock").stat().st_mode) == 0o600
        assert stat.S_IMODE((path.parent / "web1.sock.pid").stat().st_mode) == 0o644
        assert connects(path)


@pytest.mark.parametrize("mask", [0, 0o077])
def test_directories_above_it_can_be_entered_by_all(place: Path, mask: int) -> None:
    path = place / "a" / "b" / "run" / "web1.sock"
    with umask(mask), bind_control_socket(path, group="no such group"):
        modes = [stat.S_IMODE(its.stat().st_mode) for its in list(path.parents)[:3]]
    assert modes == [0o755] * 3


@as_root
def test_the_group_may_connect_where_there_is_one(place: Path) -> None:
    path, group = place / "web1.sock", grp.getgrgid(1)
    with umask(0o077), bind_control_socket(path, group=group.gr_name):
        its = path.stat()
    assert (stat.S_IMODE(its.st_mode), its.st_uid, its.st_gid) == (0o660, 0, 1)


def test_a_directory_that_is_there_keeps_its_mode(place: Path) -> None:
    place.chmod(0o700)
    with bind_control_socket(place / "web1.sock"):
        pass
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_socket_is_not_open_to_others_for_a_moment(place: Path) -> None:
    # a hook for audit events cannot be taken back, so this is done in a process of its own
    program = f"""
import os, stat, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from pmuctl.control.runtime.listener import bind_control_socket
path = Path({str(place / "web1.sock")!r})
seen = []
def look(event, arguments):
    if event.startswith(("os.", "open", "fcntl")) and event != "os.listdir":
        try:
            seen.append(stat.S_IMODE(os.lstat(path).st_mode))
        except FileNotFoundError:
            pass
os.umask(0)
sys.addaudithook(look)
with bind_control_socket(path, group="no such group"):
    pass
print({{oct(mode) for mode in seen}})
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("{'0o600'}\n", "")


def test_the_end_removes_the_socket_and_its_record(place: Path) -> None:
    path = place / "web1.sock"
    with bind_control_socket(path):
        pid, start = (place / "web1.sock.pid").read_text().split()
        assert (int(pid), int(start)) == (os.getpid(), Procfs().start_time(os.getpid()))
        assert sorted(os.listdir(place)) == [".lock", "web1.sock", "web1.sock.pid"]
    assert os.listdir(place) == [".lock"]


def test_the_end_leaves_what_somebody_else_put_there(place: Path) -> None:
    path = place / "web1.sock"
    with bind_control_socket(path):
        path.unlink()
        with bind_control_socket(path):
            pass
        leave_socket(path)
        (place / "web1.sock.pid").write_text("1 1\n")
        its = path.stat()
    assert os.path.samestat(path.stat(), its)
    assert (place / "web1.sock.pid").exists()


def test_the_end_does_no_harm_where_all_is_gone(place: Path) -> None:
    with bind_control_socket(place / "run" / "web1.sock"):
        shutil.rmtree(place / "run")


def test_a_socket_that_answers_is_not_replaced(place: Path) -> None:
    path = place / "web1.sock"
    with bind_control_socket(path):
        with pytest.raises(RefusedError, match="is taken") as caught, bind_control_socket(path):
            pass
        assert caught.value.why == "a server listens there"
        assert connects(path)
    assert not path.exists()


def test_a_dead_socket_is_replaced(place: Path) -> None:
    path = place / "web1.sock"
    leave_socket(path)
    with bind_control_socket(path):
        assert connects(path)


@pytest.mark.parametrize(
    ("record", "is_replaced"),
    [
        ("77 1000\n", False),
        ("77 1001\n", True),  # the pid is another process's by now
        ("78 1000\n", True),
        ("77 None\n", True),
        ("77 1000", True),
        ("", True),
        ("77 1000\n" + "x" * 100, True),
        ("٣ ٣\n", True),
    ],
)
def test_a_socket_is_stale_once_its_recorded_process_is_gone(
    place: Path, record: str, *, is_replaced: bool
) -> None:
    stat_of(place / "proc", 77, 1000)
    stat_of(place / "proc", os.getpid(), 5)
    path = place / "web1.sock"
    leave_socket(path)
    (place / "web1.sock.pid").write_text(record)
    with ExitStack() as stack:
        if is_replaced:
            stack.enter_context(bind_control_socket(path, procs=Procfs(place / "proc")))
            assert (place / "web1.sock.pid").read_text() == f"{os.getpid()} 5\n"
        else:
            with pytest.raises(RefusedError) as caught:
                stack.enter_context(bind_control_socket(path, procs=Procfs(place / "proc")))
            assert caught.value.why == "its process 77 is still there"
            assert path.is_socket()


@pytest.mark.parametrize("kind", ["fifo", "link", "loop", "endless"])
def test_a_hostile_record_is_not_followed_and_not_waited_for(place: Path, kind: str) -> None:
    path, record, victim = place / "web1.sock", place / "web1.sock.pid", place / "victim"
    stat_of(place / "proc", 77, 1000)
    victim.write_text("77 1000\n")
    leave_socket(path)
    match kind:
        case "fifo":
            os.mkfifo(record)
        case "link":
            record.symlink_to(victim)
        case "loop":
            record.symlink_to(record)
        case "endless":
            record.symlink_to("/dev/zero")
    with bind_control_socket(path, procs=Procfs(place / "proc")):
        assert stat.S_ISREG(record.lstat().st_mode)
    assert victim.read_text() == "77 1000\n"


@pytest.mark.parametrize("kind", ["file", "fifo", "directory", "link", "dangling link"])
def test_what_is_no_socket_is_never_replaced(place: Path, kind: str) -> None:
    path = place / "web1.sock"
    match kind:
        case "file":
            path.touch()
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "link":
            leave_socket(place / "other")
            path.symlink_to(place / "other")
        case _:
            path.symlink_to(place / "nothing")
    before = path.lstat()
    with pytest.raises(RefusedError, match="is in the way"), bind_control_socket(path):
        pass
    assert os.path.samestat(path.lstat(), before)
    assert not (place / "nothing").exists()


def test_of_two_threads_one_gets_the_name(place: Path) -> None:
    path = place / "run" / "web1.sock"
    leave_socket(path)
    at_once, tried = threading.Barrier(4), threading.Barrier(4)

    def attempt(_: int) -> str:
        with ExitStack() as stack:
            at_once.wait()
            try:
                stack.enter_context(bind_control_socket(path))
                return "got it"
            except RefusedError as error:
                return error.message
            finally:
                tried.wait()

    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(attempt, range(4)))
    assert outcomes == [f"{path} is taken"] * 3 + ["got it"]


def test_of_two_processes_one_gets_the_name(place: Path) -> None:
    path = place / "web1.sock"
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from pmuctl.control.runtime.listener import bind_control_socket
from pmuctl.errors import RefusedError
sys.stdin.readline()
try:
    with bind_control_socket(Path({str(path)!r})):
        print("got it", flush=True)
        sys.stdin.readline()
except RefusedError as error:
    print(error.why, flush=True)
"""
    with ExitStack() as stack:
        ran = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", program],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    bufsize=1,
                )
            )
            for _ in range(2)
        ]
        for process in ran:
            assert process.stdin is not None
            process.stdin.write("go\n")
        said = [process.stdout.readline() for process in ran if process.stdout is not None]
        assert sorted(said) == ["a server listens there\n", "got it\n"]
        for process in ran:
            process.communicate("go\n" if process.poll() is None else None)
    assert not path.exists()


def test_a_path_too_long_is_a_usage_error(place: Path) -> None:
    longest = place / ("x" * (SUN_PATH_MAX - len(str(place)) - 1))
    with bind_control_socket(longest):
        assert connects(longest)
    with pytest.raises(UsageError, match="too long"), bind_control_socket(Path(f"{longest}x")):
        pass
    with pytest.raises(UsageError, match="too long"), bind_control_socket(place / ("é" * 50)):
        pass
    assert os.listdir(place) == [".lock"]


@pytest.mark.parametrize("parent", ["file", "file/run", "dangling", "loop"])
def test_a_runtime_directory_that_cannot_be_one_is_refused(place: Path, parent: str) -> None:
    (place / "file").touch()
    (place / "dangling").symlink_to(place / "nothing")
    (place / "loop").symlink_to(place / "loop")
    with pytest.raises(RefusedError, match="cannot be made there") as caught:
        with bind_control_socket(place / parent / "web1.sock"):
            pass
    assert caught.value.why
    assert caught.value.fix
    assert not (place / "nothing").exists()


def test_a_record_that_cannot_be_written_leaves_no_socket(place: Path) -> None:
    (place / "web1.sock.pid").mkdir()
    with (
        pytest.raises(PmuctlError, match="cannot be made there"),
        bind_control_socket(place / "web1.sock"),
    ):
        pass
    assert sorted(os.listdir(place)) == [".lock", "web1.sock.pid"]


@as_user
def test_an_unwritable_directory_is_denied(place: Path) -> None:
    place.chmod(0o555)
    try:
        with (
            pytest.raises(DeniedError, match="cannot be made there"),
            bind_control_socket(place / "web1.sock"),
        ):
            pass
    finally:
        place.chmod(0o755)


@as_root
def test_another_users_directory_is_denied(place: Path) -> None:
    # modules are read beforehand: they may lie where the other user may not look
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from pmuctl.control.runtime.listener import bind_control_socket
from pmuctl.errors import DeniedError
os.setgroups([])
os.setresgid(*[{NOBODY}] * 3)
os.setresuid(*[{NOBODY}] * 3)
for path in ("web1.sock", "run/web1.sock"):
    try:
        with bind_control_socket(Path({str(place)!r}) / path):
            print("got it")
    except DeniedError as error:
        print(error.why)
"""
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (ran.stdout.count("Permission denied\n"), ran.stderr) == (2, "")
    assert os.listdir(place) == []


def claim_as(uid: int, path: Path, *, mask: int = 0o022, groups: Sequence[int] = ()) -> str:
    """What becomes of another user's claim, from a process of its own."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = "something else"
        with suppress(BaseException):
            os.umask(mask)
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            try:
                with bind_control_socket(path):
                    told = "got it"
            except DeniedError as error:
                told = str(error.why)
        os.write(write, told.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with open(read) as file:
        return file.read()


@as_root
def test_who_may_write_to_the_directory_takes_its_lock_whatever_the_umask_is(place: Path) -> None:
    path, its = place / "web1.sock", 4320
    os.chown(place, 0, its)
    place.chmod(0o2775)
    assert claim_as(4321, path, mask=0o777, groups=[its]) == "got it"
    assert claim_as(4322, path, mask=0o077, groups=[its]) == "got it"
    assert stat.S_IMODE((place / ".lock").stat().st_mode) == 0o660
    place.chmod(0o1777)  # where the kernel protects others' files from root, too
    with bind_control_socket(path):
        pass


@as_root
def test_a_directory_of_ones_own_is_locked_by_nobody_else(place: Path) -> None:
    path = place / "run/web1.sock"
    os.chown(place, 4321, 4321)
    assert claim_as(4321, path, mask=0o777) == "got it"
    assert stat.S_IMODE((path.parent / ".lock").stat().st_mode) == 0o600
    assert claim_as(4322, path) == f"{path.parent}/.lock: Permission denied"


def test_a_lock_that_is_held_for_ever_is_not_waited_for_so_long(place: Path) -> None:
    with open(place / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="is locked"):
            with bind_control_socket(place / "web1.sock", patience=0.05):
                pass
    with bind_control_socket(place / "web1.sock", patience=0.05):
        pass


def test_a_link_as_lock_is_not_followed(place: Path) -> None:
    (place / ".lock").symlink_to(place / "victim")
    with (
        pytest.raises(RefusedError, match="cannot be made there"),
        bind_control_socket(place / "web1.sock"),
    ):
        pass
    assert not (place / "victim").exists()


@pytest.mark.parametrize("kind", ["fifo", "directory", "link to itself"])
def test_what_is_no_lock_is_in_the_way(place: Path, kind: str) -> None:
    match kind:
        case "fifo":
            os.mkfifo(place / ".lock")
        case "directory":
            (place / ".lock").mkdir()
        case _:
            (place / ".lock").symlink_to(".lock")
    with pytest.raises(RefusedError) as raised, bind_control_socket(place / "web1.sock"):
        pass
    assert f"{place}/.lock" in f"{raised.value.message} {raised.value.why}"
    assert raised.value.fix
    assert os.listdir(place) == [".lock"]
