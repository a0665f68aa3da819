# SPDX-License-Identifier: Apache-2.0
"""The console script: what TAB and scripts ask most is answered here, all else by `cli.main`.

Nothing is imported before that is known: a TAB has to take no longer than a bare Python.
"""

# without what `signal` imports: that takes longer than a TAB may take
import _signal  # type: ignore[import-not-found]
import os
import sys

ENDING = {_signal.SIGINT: 130, _signal.SIGTERM: 143, _signal.SIGHUP: 143}
"""As in `cli.main`, which takes over once there is something to be told."""


def run() -> None:
    """Run pmuctl and end the process."""
    for number in ENDING:
        if _signal.getsignal(number) is not _signal.SIG_IGN:  # as nohup(1) has it
            _signal.signal(number, _end)
    if sys.argv[1:] == ["--version"]:
        _print_version()
    if sys.argv[1:2] == ["__complete"]:
        from pmuctl.cli.tab.candidates import run
    else:
        from pmuctl.cli.main import run
    run()


def _end(number: int, _: object) -> None:
    """Nothing is begun yet: end at once."""
    os._exit(ENDING[number])


def _print_version() -> None:
    """Print it and end; where it cannot be written, return to what can say so."""
    from pmuctl import __version__

    try:
        sys.stdout.write(f"pmuctl {__version__}\n")
        sys.stdout.flush()
    except (OSError, AttributeError):
        return
    os._exit(0)
