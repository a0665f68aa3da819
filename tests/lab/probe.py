# SPDX-License-Identifier: Apache-2.0
"""In the lab: say what pmuctl's probes find, through its cache. `python3 -m` this."""

import json
import os

from pmuctl.host.kvm.cache import read_kvm_caps, to_json
from pmuctl.host.pmus import scan_pmus
from pmuctl.host.sysfs import Sysfs


def main() -> None:
    """Print one JSON document."""
    sysfs = Sysfs()
    print(json.dumps(to_json(read_kvm_caps(sysfs, scan_pmus(sysfs), os.environ))))


if __name__ == "__main__":
    main()
