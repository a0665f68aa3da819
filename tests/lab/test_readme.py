# SPDX-License-Identifier: Apache-2.0
"""The README's first terminal session is what the demonstration prints on a real kernel."""

import re

from tests.lab.demo import show
from tests.lab.machine import boot
from tests.sessions import read_sessions, shape


def test_the_session_in_the_readme_is_the_one_that_is_printed() -> None:
    first, _ = read_sessions()
    told: list[str] = []
    with boot("newest", "two") as lab:
        show(lab, told.append)
    session = "".join(told)
    assert shape(session) == shape(first)
    without, with_pmuctl = session.split("# The same VM again")
    assert all(int(n) == 0 for n in re.findall(r"cycle counter (\d+)", without))
    assert all(int(n) > 0 for n in re.findall(r"cycle counter (\d+)", with_pmuctl))
