# SPDX-License-Identifier: Apache-2.0
"""What the tests' files take is kept, told, and held against what they took."""

import os
from pathlib import Path

import pytest

from tests.seconds import KEPT, find_grown, format_report, read_seconds, write_seconds
from tests.skips import skip_if


def test_what_is_written_is_read(tmp_path: Path) -> None:
    seconds = {"tests/unit/test_a.py": 0.5, "tests/lab/test_b.py on 6.1": 61.0}
    write_seconds(seconds, tmp_path / "kept")
    assert read_seconds(tmp_path / "kept") == seconds
    assert [*read_seconds(tmp_path / "kept")] == [*reversed(seconds)]
    assert read_seconds(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("now", "has_grown"),
    [(60.0, False), (80.0, False), (80.1, True), (20.0, False)],
)
def test_a_file_has_grown_that_takes_over_a_third_longer(now: float, *, has_grown: bool) -> None:
    assert find_grown({"a": now}, {"a": 60.0}) == (["a"] if has_grown else [])


def test_what_is_short_may_vary() -> None:
    assert find_grown({"a": 15.9, "b": 16.1}, {"a": 1.0, "b": 1.0}) == ["b"]


def test_what_is_not_kept_has_not_grown() -> None:
    assert find_grown({"a": 100.0}, {}) == []


def test_the_longest_is_told_last_and_what_has_grown_after_it() -> None:
    now = {"long": 80.0, "new": 1.0, "short": 2.0, "tiny": 0.4, "small": 0.3}
    lines = [*format_report(now, {"long": 50.0, "short": 2.0, "tiny": 0.5})]
    assert [line.split() for line in lines] == [
        ["this", "run", "seconds.tsv"],
        ["1.0", "-", "new"],
        ["2.0", "2.0", "short"],
        ["80.0", "50.0", "long"],
        ["0.7", "2", "more", "files"],
        "82.4 52.5 all that have a row there, workers side by side".split(),
        (
            "grown by more than a third: long took 80.0 s, seconds.tsv has 50.0 "
            "(on an idle machine, and meant: UPDATE_SECONDS=1 tests/run)"
        ).split(),
    ]


@skip_if("UPDATE_SECONDS" in os.environ, "they are being written", runs="without UPDATE_SECONDS")
def test_every_kept_file_is_there() -> None:
    """Of one that was moved or removed, change or remove its rows in tests/seconds.tsv by hand."""
    root = KEPT.parents[1]
    files = {unit.partition(" on ")[0] for unit in read_seconds()}
    assert files
    assert [file for file in files if not (root / file).exists()] == []
