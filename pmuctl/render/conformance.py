# SPDX-License-Identifier: Apache-2.0
"""What is shown of the checks of a control socket: their columns."""

from collections.abc import Sequence

from pmuctl.conformance.runner import Finding
from pmuctl.render.columns import Column

FINDING_COLUMNS: Sequence[Column[Finding]] = (
    Column(name="CHECK", help="its name", value=lambda its: its.check.name),
    Column(name="RESULT", help="pass, fail or skip", value=lambda its: str(its.outcome)),
    Column(name="DETAIL", help="why it did not pass", value=lambda its: its.detail),
    Column(name="RULE", help="what has to hold", value=lambda its: its.check.rule, shown=False),
)
