# SPDX-License-Identifier: Apache-2.0
"""What the tests' files take is kept, told, and held against what they took."""

from pathlib import Path

import pytest

from tests.seconds import KEPT, find_grown, read_seconds, tell, write_seconds


def test_what_is_written_is_read(tmp_path: Path) -> None:
    seconds = {"tests/unit/test_a.py": 0.5, "tests/lab/test_b.py on 6.1": 61.0}
    write_seconds(seconds, tmp_path / "kept")
    assert read_seconds(tmp_path / "kept") == seconds
    assert [*read_seconds(tmp_path / "kept")] == [*reversed(seconds)]
    assert read_seconds(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("now", "has_grown"),
    [(30.0, False), (40.0, False), (40.1, True), (20.0, False)],
)
def test_a_file_has_grown_that_takes_over_a_third_longer(now: float, *, has_grown: bool) -> None:
    assert find_grown({"a": now}, {"a": 30.0}) == (["a"] if has_grown else [])


def test_what_is_short_may_vary() -> None:
    assert find_grown({"a": 8.9, "b": 9.1}, {"a": 1.0, "b": 1.0}) == ["b"]


def test_what_is_not_kept_has_not_grown() -> None:
    assert find_grown({"a": 100.0}, {}) == []


def test_the_longest_is_told_last_and_what_has_grown_after_it() -> None:
    lines = [*tell({"long": 80.0, "new": 1.0, "short": 2.0}, {"long": 50.0, "short": 2.0})]
    assert [line.split() for line in lines] == [
        ["now", "kept"],
        ["1.0", "-", "new"],
        ["2.0", "2.0", "short"],
        ["80.0", "50.0", "long"],
        "82.0 52.0 together, of 2 of 3 that are kept".split(),
        "grown by more than a third: long, 1.6 times what is kept".split(),
    ]


def test_every_kept_file_is_there() -> None:
    """Or its time is of no use to anybody: UPDATE_SECONDS=1 tests/run."""
    root = KEPT.parents[1]
    files = {unit.partition(" on ")[0] for unit in read_seconds()}
    assert files
    assert [file for file in files if not (root / file).exists()] == []
