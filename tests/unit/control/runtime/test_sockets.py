# SPDX-License-Identifier: Apache-2.0
"""Where control sockets live, and which are found there."""

import os
import shutil
from pathlib import Path

import pytest

from pmuctl.control.runtime.sockets import (
    SOCKETS_MAX,
    file_name,
    own_dir,
    record_path,
    runtime_dirs,
    scan_sockets,
)
from pmuctl.errors import UsageError
from pmuctl.host.runtime_dirs import PROBE_CACHE
from tests.skips import only_root
from tests.unit.control.runtime.conftest import leave_socket

as_root = only_root("only root can be another user")
ME = os.geteuid()


def test_no_record_takes_the_place_of_what_is_kept_beside_it() -> None:
    name = PROBE_CACHE.removesuffix(".json")
    assert record_path(Path("/run/pmuctl", file_name(name))).name == f"{name}.sock.json"


def test_each_user_looks_in_the_directories_of_root_and_their_own(place: Path) -> None:
    run, users = place / "run", place / "user"
    for name in ("1000", "7", "x", "01"):
        (users / name).mkdir(parents=True)
    both = {"run": run, "users": users}
    assert runtime_dirs({}, 0, **both) == [
        (run, None),
        (users / "1000" / "pmuctl", 1000),
        (users / "7" / "pmuctl", 7),
    ]
    assert runtime_dirs({}, 7, **both) == [(run, None)]
    assert runtime_dirs({"XDG_RUNTIME_DIR": "/x"}, 7, **both) == [
        (run, None),
        (Path("/x/pmuctl"), 7),
    ]
    assert runtime_dirs({"PMUCTL_RUNTIME_DIR": "/y"}, 0, **both) == [(Path("/y"), None)]


@pytest.mark.parametrize(
    ("environ", "uid", "path"),
    [
        ({}, 0, "/run/pmuctl"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/pmuctl"),
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/pmuctl"),
        ({"XDG_RUNTIME_DIR": "/run/user/7", "PMUCTL_RUNTIME_DIR": "/x"}, 7, "/x"),
    ],
)
def test_each_user_has_a_directory(environ: dict[str, str], uid: int, path: str) -> None:
    assert own_dir(environ, uid) == Path(path)


def test_a_user_without_one_is_told_how_to_get_it() -> None:
    with pytest.raises(UsageError, match="no runtime directory") as caught:
        own_dir({}, 7)
    assert "PMUCTL_RUNTIME_DIR" in str(caught.value.fix)


def test_a_file_is_called_after_its_vm_and_nothing_else() -> None:
    assert file_name("web1") == "web1.sock"
    for name in ("", ".", "..", "../web1", "a/b", "web1\n", "a" * 65, "-v", "\x1b[2J", "\udcff"):
        with pytest.raises(UsageError):
            file_name(name)


# What is found


def test_only_sockets_with_a_vms_name_are_found(place: Path) -> None:
    for name in ("web1.sock", "Z_9.x-.sock"):
        leave_socket(place / name)
    for name in ("web1", ".sock", "-v.sock", "a b.sock", "\x1b[2J.sock", "x" * 65 + ".sock"):
        leave_socket(place / name)
    leave_socket(place / os.fsdecode(b"\xff.sock"))
    (place / "file.sock").touch()
    (place / "fifo.sock.d").mkdir()
    os.mkfifo(place / "fifo.sock")
    (place / "dir.sock").mkdir()
    (place / "link.sock").symlink_to(place / "web1.sock")
    (place / "dangling.sock").symlink_to(place / "nothing")
    (place / "loop.sock").symlink_to(place / "loop.sock")
    found = scan_sockets({"PMUCTL_RUNTIME_DIR": str(place)}, ME).sockets
    assert sorted((its.name, its.path, its.speaks_for) for its in found) == [
        ("Z_9.x-", place / "Z_9.x-.sock", None),
        ("web1", place / "web1.sock", None),
    ]


@pytest.mark.parametrize("kind", ["nothing", "file", "fifo", "loop"])
def test_a_runtime_directory_that_is_none_holds_nothing(place: Path, kind: str) -> None:
    path = place / "run"
    match kind:
        case "file":
            path.touch()
        case "fifo":
            os.mkfifo(path)
        case "loop":
            path.symlink_to(path)
    assert scan_sockets({"PMUCTL_RUNTIME_DIR": str(path)}, ME).sockets == []


@as_root
def test_root_looks_into_the_directories_of_users_too(place: Path) -> None:
    run, users = place / "run", place / "user"
    leave_socket(run / "web1.sock")
    for uid in (1000, 1001):
        directory = users / str(uid) / "pmuctl"
        leave_socket(directory / "web1.sock", uid=uid)
        os.chown(directory, uid, uid)
    found = scan_sockets({}, 0, run=run, users=users).sockets
    assert {(its.name, its.speaks_for) for its in found} == {
        ("web1", None),
        ("web1", 1000),
        ("web1", 1001),
    }


@as_root
def test_a_directory_in_another_users_name_is_not_looked_into(place: Path) -> None:
    users = place / "user"
    leave_socket(users / "1000" / "pmuctl" / "roots.sock")  # the directory is root's
    directory = users / "1001" / "pmuctl"
    leave_socket(directory / "web1.sock", uid=1001)
    os.chown(directory, 1001, 1001)
    (users / "1002").mkdir()
    (users / "1002" / "pmuctl").symlink_to(directory)
    os.chown(users / "1002" / "pmuctl", 1002, 1002, follow_symlinks=False)
    (users / "1003").mkdir()
    (users / "1003" / "pmuctl").touch()
    os.chown(users / "1003" / "pmuctl", 1003, 1003)
    for name in ("x", "-1", "²", "٣", "01001", "1001 ", "99999999999"):
        shutil.copytree(users / "1003", users / name)
    found = scan_sockets({}, 0, run=place / "run", users=users)
    assert [its.speaks_for for its in found.sockets] == [1001]


@as_root
def test_of_another_user_no_more_than_so_many_are_asked(place: Path) -> None:
    run, users = place / "run", place / "user"
    many = SOCKETS_MAX + 3
    for n in range(many):
        leave_socket(users / "1001/pmuctl" / f"w{n}.sock", uid=1001)
    os.chown(users / "1001/pmuctl", 1001, 1001)
    leave_socket(run / "web1.sock")
    found = scan_sockets({}, 0, run=run, users=users)
    assert (len(found.sockets), found.left_out) == (SOCKETS_MAX + 1, 3)
    own = {"XDG_RUNTIME_DIR": str(users / "1001")}
    found = scan_sockets(own, 1001, run=run, users=users)
    assert (len(found.sockets), found.left_out) == (many + 1, 0)


def test_a_user_sees_roots_vms_and_the_own(place: Path) -> None:
    run, own, users = place / "run", place / "own", place / "user"
    leave_socket(run / "web1.sock")
    leave_socket(own / "pmuctl" / "web2.sock")
    leave_socket(users / "1" / "pmuctl" / "web3.sock")
    uid = ME or 1000
    os.chown(own / "pmuctl", uid, -1)
    found = scan_sockets({"XDG_RUNTIME_DIR": str(own)}, uid, run=run, users=users).sockets
    assert [(its.name, its.speaks_for) for its in found] == [("web1", None), ("web2", uid)]
