# SPDX-License-Identifier: Apache-2.0
"""In the lab: say what pmuctl's probes find, through its cache. `python3 -m` this."""

import json
import os

from pmuctl.host.kvm.cache import CAPS, read_kvm_caps
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs


def main() -> None:
    """Print one JSON document."""
    sysfs = Sysfs()
    print(json.dumps(CAPS.format(read_kvm_caps(sysfs, scan_pmus(sysfs), os.environ))))


if __name__ == "__main__":
    main()
