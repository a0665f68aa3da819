# SPDX-License-Identifier: Apache-2.0
"""Files that one user keeps for others: how they are written, and when they are not believed."""

import errno
import os
import socket
import stat
from pathlib import Path

import pytest

from pmuctl.host import json_store
from pmuctl.schema import AnyValue, Int, List
from tests.skips import only_root

ME = {os.geteuid()}
as_root = only_root("only root can give files away")


def load(directory: Path, *, limit: int = 100) -> object:
    return json_store.load(directory, "a.json", AnyValue(), owners=ME, limit=limit)


def store(directory: Path, document: object, *, limit: int = 100) -> None:
    json_store.save(directory, "a.json", document, owners=ME, limit=limit)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


def test_what_was_stored_is_loaded(directory: Path) -> None:
    documents: list[object] = [{"a": [1, None, "\ud800ä"]}, [], "x", {}]
    for document in documents:
        store(directory, document)
        assert load(directory) == document
    assert stat.S_IMODE((directory / "a.json").stat().st_mode) == 0o644
    assert stat.S_IMODE(directory.stat().st_mode) == 0o755
    assert os.listdir(directory) == ["a.json"]


def test_what_has_another_form_is_none(directory: Path) -> None:
    form = List(Int(), make=frozenset, unmake=sorted)
    store(directory, form.format({2, 1}))
    assert json_store.load(directory, "a.json", form, owners=ME, limit=100) == {1, 2}
    store(directory, [1, "2"])
    assert json_store.load(directory, "a.json", form, owners=ME, limit=100) is None


def test_the_mode_is_that_whatever_the_umask_is(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        store(directory, {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / "a.json").stat().st_mode) == 0o644


def test_what_is_not_there_is_none(directory: Path) -> None:
    assert load(directory) is None
    json_store.remove(directory, "a.json")
    directory.mkdir()
    assert load(directory) is None
    json_store.remove(directory, "a.json")


def test_what_is_too_large_is_neither_written_nor_read(directory: Path) -> None:
    store(directory, "x" * 50)
    assert load(directory, limit=53) == "x" * 50
    assert load(directory, limit=52) is None
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its errno is what tells
        store(directory, "y" * 98)
    assert caught.value.errno == errno.EFBIG
    assert load(directory) == "x" * 50
    assert os.listdir(directory) == ["a.json"]


@pytest.mark.parametrize("data", [b"", b"{", b"\xff", b"[" * 99, b"9" * 5000, b"nul"])
def test_what_is_no_json_is_none(directory: Path, data: bytes) -> None:
    directory.mkdir()
    (directory / "a.json").write_bytes(data)
    assert load(directory, limit=5000) is None


def test_deep_nesting_is_none(directory: Path) -> None:
    directory.mkdir()
    (directory / "a.json").write_bytes(b"[" * 100_000 + b"]" * 100_000)
    assert load(directory, limit=1 << 20) is None


@pytest.mark.parametrize("kind", ["link", "fifo", "socket", "directory", "device", "loop"])
def test_only_a_regular_file_is_read_and_anything_but_a_directory_replaced(
    directory: Path, kind: str
) -> None:
    directory.mkdir()
    precious = directory / "precious"
    precious.write_text('"precious"')
    path = directory / "a.json"
    match kind:
        case "link":
            path.symlink_to(precious)
        case "fifo":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as its:
                its.bind(str(path))
        case "directory":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case _:
            path.symlink_to(path)
    assert load(directory) is None
    if kind == "directory":
        with pytest.raises(IsADirectoryError):
            store(directory, {})
        assert sorted(os.listdir(directory)) == ["a.json", "precious"]
        return
    store(directory, {"a": 1})
    assert load(directory) == {"a": 1}
    assert not path.is_symlink()
    assert precious.read_text() == '"precious"'


def test_a_link_is_removed_and_not_what_it_names(directory: Path) -> None:
    directory.mkdir()
    (directory / "precious").write_text("x")
    (directory / "a.json").symlink_to("precious")
    json_store.remove(directory, "a.json")
    assert os.listdir(directory) == ["precious"]


def test_a_linked_directory_is_neither_read_nor_written(directory: Path) -> None:
    store(directory, {"a": 1})
    elsewhere = directory.rename(directory.with_name("elsewhere"))
    directory.symlink_to(elsewhere)
    assert load(directory) is None
    with pytest.raises(OSError, match="directory"):
        store(directory, {"a": 2})
    with pytest.raises(OSError, match="directory"):
        json_store.remove(directory, "a.json")
    assert load(elsewhere) == {"a": 1}


@pytest.mark.parametrize("mode", [0o020, 0o002, 0o1777])
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_others_may_write_to_is_not_believed(directory: Path, what: str, mode: int) -> None:
    store(directory, {"a": 1})
    its = directory if what == "directory" else directory / "a.json"
    its.chmod(0o755 | mode)
    assert load(directory) is None
    if what == "directory":
        with pytest.raises(PermissionError):
            store(directory, {})
        assert os.listdir(directory) == ["a.json"]


@as_root
@pytest.mark.parametrize("what", ["file", "directory"])
def test_what_is_another_users_is_not_believed(directory: Path, what: str) -> None:
    store(directory, {"a": 1})
    os.chown(directory if what == "directory" else directory / "a.json", 4321, 4321)
    assert load(directory) is None
    assert json_store.load(directory, "a.json", AnyValue(), owners={0, 4321}, limit=100) == {
        "a": 1
    }
    if what == "directory":
        with pytest.raises(PermissionError):
            store(directory, {})
    else:
        store(directory, {})
        assert load(directory) == {}
