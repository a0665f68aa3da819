# SPDX-License-Identifier: Apache-2.0
"""What is shown of changes to a VM's settings."""

from collections.abc import Sequence

from pmuctl.manage.settings.transaction import Change
from pmuctl.render.columns import Column

CHANGE_COLUMNS: Sequence[Column[Change]] = (
    Column(name="VM", help="the VM", value=lambda change: change.vm),
    Column(name="KEY", help="the setting", value=lambda change: change.key),
    Column(
        name="OUTCOME",
        help="set, released, unchanged or planned",
        value=lambda change: change.outcome,
    ),
    Column(name="VALUE", help="what it is now", value=lambda change: change.value),
)
