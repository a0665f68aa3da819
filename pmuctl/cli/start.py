# SPDX-License-Identifier: Apache-2.0
"""The console script: what TAB and scripts ask most is answered here, all else by `cli.main`.

Nothing is imported before that is known: a TAB has to take no longer than a bare Python.
"""

import os
import sys


def run() -> None:
    """Run pmuctl and end the process."""
    if sys.argv[1:] == ["--version"]:
        _print_version()
    if sys.argv[1:2] == ["__complete"]:
        from pmuctl.cli.complete import run
    else:
        from pmuctl.cli.main import run
    run()


def _print_version() -> None:
    """Print it and end; where it cannot be written, return to what can say so."""
    from pmuctl import __version__

    try:
        sys.stdout.write(f"pmuctl {__version__}\n")
        sys.stdout.flush()
    except (OSError, AttributeError):
        return
    os._exit(0)
