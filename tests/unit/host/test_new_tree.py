# SPDX-License-Identifier: Apache-2.0
"""A tree that is written where others may write, too: none of it gets anywhere else."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmuctl.host.new_tree import new_tree
from pmuctl.host.snapshot_files import Captured, write_capture
from tests.skips import only_root


@pytest.fixture
def prize(tmp_path: Path) -> Path:
    """A directory that somebody would like to have written to."""
    (tmp_path / "prize").mkdir()
    return tmp_path / "prize"


def refused(root: Path, why: str) -> None:
    with pytest.raises(OSError, match=why), new_tree(root):
        pass


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_tree_moved_away_while_it_is_written_stays_whole(tmp_path: Path, prize: Path) -> None:
    """Whoever owns the directory above can put another tree in its place, with links in it."""
    root, moved = tmp_path / "root", tmp_path / "moved"

    def captured() -> Iterator[Captured]:
        yield Captured(path="proc/1/stat", text="1\n")
        root.rename(moved)
        (root / "proc").mkdir(parents=True)
        (root / "proc/2").symlink_to(prize)
        yield Captured(path="proc/2/cmdline", text="hostile\n")
        yield Captured(path="proc/2/fd/9", text="target", is_link=True)

    assert write_capture(captured(), root) == 3
    assert list(prize.iterdir()) == []
    assert (moved / "proc/2/cmdline").read_text() == "hostile\n"
    assert os.readlink(moved / "proc/2/fd/9") == "target"


@pytest.mark.parametrize("path", ["link/file", "link/below/file", "made/link/file"])
def test_no_link_is_followed_below_it(tmp_path: Path, prize: Path, path: str) -> None:
    with new_tree(tmp_path / "root") as tree:
        tree.write("made/first", b"")
        for link in ("link", "made/link"):
            (tmp_path / "root" / link).symlink_to(prize)
        with pytest.raises(FileExistsError):
            tree.write(path, b"x")
        with pytest.raises(FileExistsError):
            tree.link(path, "x")
    assert list(prize.iterdir()) == []


def test_a_directory_exchanged_for_a_link_is_not_entered(tmp_path: Path, prize: Path) -> None:
    with new_tree(tmp_path / "root") as tree:
        tree.write("made/first", b"")
        (tmp_path / "root/made").rename(tmp_path / "root/old")
        (tmp_path / "root/made").symlink_to(prize)
        with pytest.raises(NotADirectoryError):
            tree.write("made/second", b"x")
    assert list(prize.iterdir()) == []


def test_what_is_there_is_not_written_over(tmp_path: Path, prize: Path) -> None:
    (prize / "file").write_text("mine\n")
    with new_tree(tmp_path / "root") as tree:
        (tmp_path / "root/file").symlink_to(prize / "file")
        (tmp_path / "root/new").symlink_to(prize / "new")
        for path in ("file", "new"):
            with pytest.raises(FileExistsError):
                tree.write(path, b"x")
    assert (prize / "file").read_text() == "mine\n"
    assert os.listdir(prize) == ["file"]


@pytest.mark.parametrize(
    "path", ["../prize/x", "a/../../prize/x", "a/..", "..", "./x", "a//x", ""]
)
def test_every_part_of_a_path_is_below_it(tmp_path: Path, prize: Path, path: str) -> None:
    with new_tree(tmp_path / "root") as tree:
        with pytest.raises(OSError, match=r"exists|No such file|Is a directory"):
            tree.write(path, b"x")
    assert list(prize.iterdir()) == []


def test_a_link_in_its_place_is_refused(tmp_path: Path, prize: Path) -> None:
    (tmp_path / "link").symlink_to(prize)
    refused(tmp_path / "link", "symbolic link")
    refused(tmp_path / "link/", "symbolic link")
    assert list(prize.iterdir()) == []


@pytest.mark.parametrize("bits", [0o775, 0o2775, 0o757, 0o1777])
def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path, bits: int) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root").chmod(bits)
    refused(tmp_path / "root", "others may write to it")
    assert mode(tmp_path / "root") == bits


@only_root("only root can give a directory away")
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    os.chown(tmp_path / "root", 1001, -1)
    refused(tmp_path / "root", "uid 1001")


@pytest.mark.parametrize("umask", [0o022, 0o000])
def test_it_is_for_its_user_alone(tmp_path: Path, umask: int) -> None:
    (tmp_path / "empty").mkdir(mode=0o755)
    before = os.umask(umask)
    try:
        for name in ("empty", "new", "not/there"):
            with new_tree(tmp_path / name) as tree:
                assert mode(tmp_path / name) == 0o700
                tree.write("proc/1/cmdline", b"")
            assert mode(tmp_path / name) == 0o700
    finally:
        os.umask(before)
