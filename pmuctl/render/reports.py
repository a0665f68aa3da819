# SPDX-License-Identifier: Apache-2.0
"""Columns of reports: findings, symptoms, changed settings, and results of conformance checks."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pmuctl.render.columns import Column, Mark

if TYPE_CHECKING:
    from pmuctl.conformance.runner import ConformanceResult
    from pmuctl.manage.settings.result import KeyResult
    from pmuctl.model.check_result import Finding
    from pmuctl.model.symptoms.explain import Explanation

DOCTOR_COLUMNS: Sequence[Column["Finding"]] = (
    Column(name="ID", help="the check", value=lambda finding: finding.id),
    Column(name="SUBJECT", help="what was looked at", value=lambda finding: finding.subject),
    Column(
        name="RESULT",
        help="PASS, WARN or FAIL",
        value=lambda finding: finding.result,
        marks={"PASS": Mark.GOOD, "WARN": Mark.CAUTION, "FAIL": Mark.BAD},
    ),
    Column(name="WHY", help="the reason", value=lambda finding: finding.why),
    Column(name="FIX", help="what mends it", value=lambda finding: finding.fix),
)

SYMPTOM_COLUMNS: Sequence[Column["Explanation"]] = (
    Column(name="SYMPTOM", help="its name", value=lambda answer: answer.id),
    Column(name="SEEN", help="the words that are seen", value=lambda answer: answer.seen),
    Column(name="BY", help="who shows them", value=lambda answer: answer.by),
    Column(name="MEANS", help="what is behind it", value=lambda answer: answer.means),
    Column(name="CHECK", help="how to see whether it is so", value=lambda answer: answer.check),
    Column(name="FIX", help="what mends it", value=lambda answer: answer.fix),
)

CHANGE_COLUMNS: Sequence[Column["KeyResult"]] = (
    Column(name="VM", help="the VM", value=lambda result: result.vm),
    Column(name="KEY", help="the setting", value=lambda result: result.key),
    Column(
        name="OUTCOME",
        help="set, released, unchanged or planned",
        value=lambda result: result.outcome,
    ),
    Column(name="VALUE", help="what it is now", value=lambda result: result.value),
)

CONFORMANCE_COLUMNS: Sequence[Column["ConformanceResult"]] = (
    Column(name="CHECK", help="its name", value=lambda result: result.check.name),
    Column(
        name="RESULT",
        help="pass, fail or skip",
        value=lambda result: str(result.verdict),
        marks={"pass": Mark.GOOD, "skip": Mark.CAUTION, "fail": Mark.BAD},
    ),
    Column(
        name="DETAIL",
        help="why it did not pass",
        value=lambda result: result.detail,
        is_prose=True,
    ),
    Column(
        name="RULE", help="what has to hold", value=lambda result: result.check.rule, shown=False
    ),
)
