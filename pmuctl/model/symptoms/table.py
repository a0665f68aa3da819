# SPDX-License-Identifier: Apache-2.0
"""The table of symptoms.

None of their messages names the PMU and the CPU that are behind it.
"""

from collections.abc import Sequence

from pmuctl.model.symptoms.failed_entry import FAILED_ENTRY
from pmuctl.model.symptoms.guest import GUEST
from pmuctl.model.symptoms.manager import MANAGER
from pmuctl.model.symptoms.symptom import Symptom
from pmuctl.model.symptoms.vm_start import VM_START

SYMPTOMS: Sequence[Symptom] = (*FAILED_ENTRY, *VM_START, *GUEST, *MANAGER)
"""The known symptoms, in the order in which they are listed."""
