# SPDX-License-Identifier: Apache-2.0
"""Results of `vm set` and `vm release`, key by key."""

from pmuctl.errors import PmuctlError
from pmuctl.value import value

AFFINITY = "affinity"


@value(kw_only=True)
class KeyResult:
    """The outcome of one key of one VM: `set`, `released`, `unchanged` or `planned`.

    `value` is the value it has now, or would have.
    """

    vm: str
    key: str
    outcome: str
    value: str


@value(kw_only=True)
class SettingsResult:
    """The outcome of a request: a result for each key, and the steps in the kernel's terms.

    `is_placed` is True if the VM's vCPU threads are to stay on CPUs that were chosen with it;
    `warnings` are about what went wrong besides.
    """

    vm: str
    changes: tuple[KeyResult, ...]
    steps: tuple[str, ...]
    is_placed: bool = False
    warnings: tuple[PmuctlError, ...] = ()
