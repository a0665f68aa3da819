# SPDX-License-Identifier: Apache-2.0
"""How often what a command does climbs back up through the rooms of the house.

Each walk is one command in this process, on a host of its own, whose calls are followed
(sys.setprofile). Rooms are the folders of `pmuctl/`. A room is entered by a call from another one,
and a climb is a call into a room above the one that was entered last; what repeats (the next VM,
the next file) is counted once. `model/` and `uapi/` are values and rules, at home in every room:
to make one is no way down, and to come back from it no climb.
"""

from collections.abc import Sequence
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = f"{ROOT}/pmuctl/"
CLIMBS_MAX = 3
WAYS = "PMUCTL_WALK_FILE"
"""The variable that tells a supervisor where to write its walk."""

ROOMS = (
    *("cli", "cli/tab", "render"),
    *("manage/settings", "manage/diagnosis", "manage/affinity", "manage/start"),
    *("manage/inventory", "manage", "launch/serve", "launch", "launch/trace", "conformance"),
    *("control/server", "control/client", "control/runtime", "control/protocol", "control"),
    *("host", "host/kvm"),
)
"""From the top, as tests/test_layers.py has them."""
"""In no order: a room imports from those below it, see tests/test_layers.py."""


class Walk:
    """The rooms that calls enter, one after the other."""

    def __init__(self) -> None:
        self._last: str | None = None
        self._ways: list[tuple[str, str, str]] = []

    def follow(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call, as sys.setprofile() has it."""
        if event != "call" or not frame.f_code.co_filename.startswith(PACKAGE):
            return
        room = frame.f_code.co_filename[len(PACKAGE) :].rpartition("/")[0]
        if frame.f_code.co_name.startswith("<") or room not in ROOMS or room == self._last:
            return
        if self._last is not None:
            self._ways.append((self._last, room, frame.f_code.co_name))
        self._last = room

    @property
    def ways(self) -> list[tuple[str, str, str]]:
        """Each way from room to room once, with the function that was called first on it."""
        ways: dict[tuple[str, str], str] = {}
        for last, room, function in self._ways:
            ways.setdefault((last, room), function)
        return [(last, room, function) for (last, room), function in ways.items()]


def count_climbs(ways: Sequence[Sequence[str]]) -> int:
    """Return how many of these ways lead up."""
    return sum(ROOMS.index(room) < ROOMS.index(last) for last, room, _ in ways)
