# SPDX-License-Identifier: Apache-2.0
"""Becomes a command behind the gate, as `pmuctl run` does, but with any supervisor.

    python3 -I -S starter.py SPEC

SPEC is a JSON object with `orders` (as Orders.encode() gives them) and `supervisor` (a path, null
for the real one). With `announce` it prints an empty line just before the launch.
"""

import json
import os
import shutil
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pmuctl.errors import PmuctlError
from pmuctl.launch.launcher import SUPERVISOR, launch
from pmuctl.launch.spec import LaunchSpec


def main() -> None:
    spec = json.loads(sys.argv[1])
    orders = LaunchSpec.decode(json.dumps(spec["orders"]).encode())
    if spec["announce"]:
        print(flush=True)
    executable = shutil.which(orders.command[0]) or orders.command[0]
    supervisor = Path(spec["supervisor"]) if spec["supervisor"] else SUPERVISOR
    try:
        launch(orders, executable, orders.command, os.environb, supervisor=supervisor)
    except PmuctlError as error:
        its = {"error": error.message, "why": error.why, "errno": error.errno}
        print(json.dumps(its), file=sys.stderr)
        sys.exit(int(error.status))


if __name__ == "__main__":
    main()
