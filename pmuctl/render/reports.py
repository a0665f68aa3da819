# SPDX-License-Identifier: Apache-2.0
"""The columns of what commands report: findings, symptoms, conformance and changed settings."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pmuctl.render.columns import Column

if TYPE_CHECKING:
    from pmuctl.conformance.runner import ConformanceResult
    from pmuctl.manage.settings.result import KeyResult
    from pmuctl.model.check_result import Finding
    from pmuctl.model.symptoms import Symptom

DOCTOR_COLUMNS: Sequence[Column["Finding"]] = (
    Column(name="ID", help="the check", value=lambda its: its.id),
    Column(name="SUBJECT", help="what was looked at", value=lambda its: its.subject),
    Column(name="RESULT", help="PASS, WARN or FAIL", value=lambda its: its.result),
    Column(name="WHY", help="the reason", value=lambda its: its.why),
    Column(name="FIX", help="what mends it", value=lambda its: its.fix),
)

SYMPTOM_COLUMNS: Sequence[Column["Symptom"]] = (
    Column(name="SYMPTOM", help="its name", value=lambda its: its.id),
    Column(name="SEEN", help="the words that are seen", value=lambda its: its.seen),
    Column(name="BY", help="who shows them", value=lambda its: its.by),
    Column(name="MEANS", help="what is behind it", value=lambda its: its.means),
    Column(name="CHECK", help="how to see whether it is so", value=lambda its: its.check),
    Column(name="FIX", help="what mends it", value=lambda its: its.fix),
)

CHANGE_COLUMNS: Sequence[Column["KeyResult"]] = (
    Column(name="VM", help="the VM", value=lambda change: change.vm),
    Column(name="KEY", help="the setting", value=lambda change: change.key),
    Column(
        name="OUTCOME",
        help="set, released, unchanged or planned",
        value=lambda change: change.outcome,
    ),
    Column(name="VALUE", help="what it is now", value=lambda change: change.value),
)

CONFORMANCE_COLUMNS: Sequence[Column["ConformanceResult"]] = (
    Column(name="CHECK", help="its name", value=lambda its: its.check.name),
    Column(name="RESULT", help="pass, fail or skip", value=lambda its: str(its.outcome)),
    Column(name="DETAIL", help="why it did not pass", value=lambda its: its.detail),
    Column(name="RULE", help="what has to hold", value=lambda its: its.check.rule, shown=False),
)
