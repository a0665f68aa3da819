# SPDX-License-Identifier: Apache-2.0
"""What is shown of findings and of symptoms: their columns."""

from collections.abc import Sequence

from pmuctl.model.check_result import Finding
from pmuctl.model.symptoms import Symptom
from pmuctl.render.columns import Column

DOCTOR_COLUMNS: Sequence[Column[Finding]] = (
    Column(name="ID", help="the check", value=lambda its: its.id),
    Column(name="SUBJECT", help="what was looked at", value=lambda its: its.subject),
    Column(name="RESULT", help="PASS, WARN or FAIL", value=lambda its: its.result),
    Column(name="WHY", help="the reason", value=lambda its: its.why),
    Column(name="FIX", help="what mends it", value=lambda its: its.fix),
)

SYMPTOM_COLUMNS: Sequence[Column[Symptom]] = (
    Column(name="SYMPTOM", help="its name", value=lambda its: its.id),
    Column(name="SEEN", help="the words that are seen", value=lambda its: its.seen),
    Column(name="BY", help="who shows them", value=lambda its: its.by),
    Column(name="MEANS", help="what is behind it", value=lambda its: its.means),
    Column(name="CHECK", help="how to see whether it is so", value=lambda its: its.check),
    Column(name="FIX", help="what mends it", value=lambda its: its.fix),
)
