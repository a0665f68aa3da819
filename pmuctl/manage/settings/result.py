# SPDX-License-Identifier: Apache-2.0
"""What a change of a VM's settings came to, key by key."""

from pmuctl.errors import PmuctlError
from pmuctl.value import value

AFFINITY = "affinity"


@value(kw_only=True)
class KeyResult:
    """What became of one key of one VM: `set`, `released`, `unchanged` or `planned`.

    `value` is what it is now, or would be.
    """

    vm: str
    key: str
    outcome: str
    value: str


@value(kw_only=True)
class SettingsResult:
    """What became of a request: a change for each key, and the steps in the kernel's words.

    `is_placed` tells that the VM's vCPU threads are to stay on CPUs that were chosen with it;
    `warnings` are what did not go well beside it.
    """

    vm: str
    changes: tuple[KeyResult, ...]
    steps: tuple[str, ...]
    is_placed: bool = False
    warnings: tuple[PmuctlError, ...] = ()
