# SPDX-License-Identifier: Apache-2.0
"""Whose /dev/kvm is: the group that a user has to be in, where that is of any use."""

import grp
import os
from pathlib import Path

import pytest

from pmuctl.host.kvm.access import read_kvm_group
from tests.skips import only_root

ROOTS = 0
NAMELESS = 0x7FFF_0000
NAMED = next(its for its in grp.getgrall() if its.gr_gid != ROOTS)


@only_root("only root can give files away")
@pytest.mark.parametrize(
    ("group", "mode", "found"),
    [
        (NAMED.gr_gid, 0o660, NAMED.gr_name),
        (NAMED.gr_gid, 0o666, NAMED.gr_name),
        (NAMED.gr_gid, 0o640, None),
        (NAMED.gr_gid, 0o600, None),
        (ROOTS, 0o660, None),
        (NAMELESS, 0o660, None),
    ],
)
def test_the_group_that_may_open_it(
    tmp_path: Path, group: int, mode: int, found: str | None
) -> None:
    path = tmp_path / "kvm"
    path.touch()
    os.chown(path, 0, group)
    path.chmod(mode)
    assert read_kvm_group(str(path)) == found


def test_where_there_is_none(tmp_path: Path) -> None:
    assert read_kvm_group(str(tmp_path / "kvm")) is None
