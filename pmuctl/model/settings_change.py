# SPDX-License-Identifier: Apache-2.0
"""A recorded change of a VM's settings."""

from typing import NamedTuple


class SettingsChange(NamedTuple):
    """A change of a VM's settings: when (seconds since the epoch), by whom, the steps as text."""

    when: int
    by: str
    steps: tuple[str, ...]
