# SPDX-License-Identifier: Apache-2.0
"""The lab picks the right packages, and makes each part once and whole."""

import multiprocessing
import os
import re
from pathlib import Path

import pytest

from tests.lab.build import digest, kernel_regex, newest_kernel, qemu_version
from tests.lab.cache import Cache
from tests.lab.errors import LabError

PACKAGES = (
    "linux-image-6.18.5+deb13-cloud-arm64",
    "linux-image-6.18.15+deb13-cloud-arm64",
    "linux-image-6.18.15+deb13-cloud-arm64-unsigned",
    "linux-image-6.18.15+deb13-rt-arm64",
    "linux-image-6.1.0-49-cloud-arm64",
    "linux-image-7.3.4+deb13-cloud-arm64",
    "linux-binary-7.3.4+deb13-cloud-arm64",
    "linux-image-cloud-arm64",
)


@pytest.mark.parametrize(
    ("series", "package"),
    [
        (r"6\.18", "linux-image-6.18.15+deb13-cloud-arm64"),
        (r"6\.1", "linux-image-6.1.0-49-cloud-arm64"),
        (r"7\.3", "linux-binary-7.3.4+deb13-cloud-arm64"),
        (r"6\.12", None),
    ],
)
def test_newest_plain_kernel_of_a_series_is_chosen(series: str, package: str | None) -> None:
    found = [name for name in PACKAGES if re.fullmatch(kernel_regex(series), name)]
    assert newest_kernel(found) == package


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright …", (7, 2)),
        ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)", (10, 0)),
    ],
)
def test_the_version_of_an_emulator(text: str, version: tuple[int, int]) -> None:
    assert qemu_version(text) == version


def test_what_is_no_emulator_is_refused() -> None:
    with pytest.raises(LabError):
        qemu_version("qemu: command not found")


def test_digest_tells_parts_apart() -> None:
    assert digest("a", "bc") != digest("ab", "c")
    assert digest("a", b"b") == digest("a", "b")


def test_cache_follows_the_environment() -> None:
    environ = {"HOME": "/h"}
    assert Cache.from_environment(environ).root == Path("/h/.cache/pmuctl-lab")
    environ["XDG_CACHE_HOME"] = "/x"
    assert Cache.from_environment(environ).root == Path("/x/pmuctl-lab")
    environ["PMUCTL_LAB_CACHE"] = "/own"
    assert Cache.from_environment(environ).root == Path("/own")


def test_a_thing_is_made_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    assert cache.make("a/thing", lambda out: void(out.write_text("first"))).read_text() == "first"
    assert cache.make("a/thing", lambda out: void(out.write_text("again"))).read_text() == "first"


def test_a_broken_build_leaves_nothing(tmp_path: Path) -> None:
    def build(out: Path) -> None:
        out.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Cache(tmp_path).make("thing", build)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_remains_of_a_killed_build_are_removed(tmp_path: Path) -> None:
    (tmp_path / "tmp-old").mkdir()
    Cache(tmp_path).make("thing", lambda out: out.mkdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock", "thing"]


def test_two_builders_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=make_slowly, args=(tmp_path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text() == "begin\nend\n"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for age in range(5):
        (tmp_path / f"layer-{age}").touch()
        os.utime(tmp_path / f"layer-{age}", (1000 - age, 1000 - age))
    Cache(tmp_path).keep_newest("layer-*", 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["layer-0", "layer-1"]


def make_slowly(root: Path) -> None:
    """Make a thing, and say in a log when."""

    def build(out: Path) -> None:
        with open(root / "log", "a", encoding="utf-8") as log:
            log.write("begin\n")
            log.flush()
            out.write_text("made")
            log.write("end\n")

    Cache(root).make("thing", build)


def void(_value: object) -> None:
    """For a lambda that is to return nothing."""
