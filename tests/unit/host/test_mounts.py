# SPDX-License-Identifier: Apache-2.0
"""Mounts at which a look can wait for ever are told from others, by the kernel's table alone."""

from pathlib import Path

import pytest

from pmuctl.host.mounts import find_unanswered, may_hang

USER = "/run/user/1000"
RUNTIME = f"{USER}/pmuctl"
TMPFS = ("tmpfs", USER)


def table(*mounts: tuple[str, str]) -> str:
    """A mountinfo of these types and places."""
    mounts = (("ext4", "/"), ("tmpfs", "/run"), *mounts)
    lines = (
        f"{number} 1 0:{number} / {place} rw,relatime shared:1 - {kind} none rw\n"
        for number, (kind, place) in enumerate(mounts, 30)
    )
    return "".join(lines)


@pytest.mark.parametrize(
    "mounts",
    [
        [],
        [TMPFS],
        # what desktops have
        [TMPFS, ("fuse.gvfsd-fuse", f"{USER}/gvfs"), ("fuse.portal", f"{USER}/doc")],
        [TMPFS, ("fuse", f"{RUNTIME}2")],
        [("nfs4", "/run"), TMPFS],
        [("fuse", USER), TMPFS],
        [("fuse.sshfs", "/run/user/2000")],
    ],
)
def test_a_directory_that_the_kernel_answers_for(mounts: list[tuple[str, str]]) -> None:
    assert find_unanswered([RUNTIME], table(*mounts)) == set()


@pytest.mark.parametrize(
    "mounts",
    [
        [TMPFS, ("fuse", RUNTIME)],
        [TMPFS, ("fuse.sshfs", f"{RUNTIME}/web1.sock")],
        [TMPFS, ("fuse.sshfs", USER)],
        [("fuse", USER), ("tmpfs", "/run/user/2000")],
        [("nfs4", "/run/user")],
        [("9p", r"/run/user/1000/pmuctl")],
        [("autofs", "/run")],
    ],
)
def test_a_directory_that_may_never_answer(mounts: list[tuple[str, str]]) -> None:
    assert find_unanswered([RUNTIME, "/run/pmuctl"], table(*mounts)) >= {RUNTIME}


def test_places_are_unescaped_and_other_lines_left_alone() -> None:
    mounts = "nonsense\n" + table(("cifs", r"/run/user/1000/a\040b"))
    assert find_unanswered([f"{USER}/a b"], mounts) == {f"{USER}/a b"}


@pytest.mark.parametrize(
    ("path", "hangs"),
    [
        ("/vm/qmp", False),
        ("/nfs/qmp", True),
        ("/vm/../vm/./qmp", False),
        ("/vm/../nfs/qmp", True),
        ("/vm/near/qmp", False),
        ("/vm/away/qmp", True),
        ("/vm/round/qmp", True),
        ("/vm/away/../vm/qmp", True),
        ("/vm/endless", True),
        ("/vm/missing/qmp", False),
    ],
)
def test_a_way_over_links_to_where_nobody_may_answer(
    tmp_path: Path, path: str, *, hangs: bool
) -> None:
    """What is there is never touched: no file of this tree is on such a mount."""
    for name, target in {
        "near": "../vm",
        "away": "/nfs/vm",
        "round": "near/away",
        "endless": "endless",
    }.items():
        (tmp_path / "vm").mkdir(exist_ok=True)
        (tmp_path / "vm" / name).symlink_to(target)
    mounts = table(("nfs4", "/nfs"), ("tmpfs", "/nfs/local"))
    assert may_hang(path, str(tmp_path), mounts) is hangs
