# SPDX-License-Identifier: Apache-2.0
"""What was changed of a VM, as it is kept."""

from typing import NamedTuple


class SettingsChange(NamedTuple):
    """A change of a VM's settings: when (seconds since the epoch), by whom, the steps in words."""

    when: int
    by: str
    steps: tuple[str, ...]
