# SPDX-License-Identifier: Apache-2.0
"""The console script: what TAB asks is answered here, all else by `cli.main`.

Nothing is imported before that is known: a TAB has to take no longer than a bare Python.
"""

import sys


def run() -> None:
    """Run pmuctl and end the process."""
    if sys.argv[1:2] == ["__complete"]:
        from pmuctl.cli.complete import run
    else:
        from pmuctl.cli.main import run
    run()
