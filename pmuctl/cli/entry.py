# SPDX-License-Identifier: Apache-2.0
"""The console script. `--version` and completion are answered here, all else by `cli.main`.

Nothing else is imported first: TAB must not take longer than starting Python alone.
"""

# not `signal`: what that imports takes longer than TAB may take
import _signal  # type: ignore[import-not-found]
import os
import sys

ENDING = {_signal.SIGINT: 130, _signal.SIGTERM: 143, _signal.SIGHUP: 143}
"""Signal → exit status, as in `cli.main`, which installs handlers of its own."""


def run() -> None:
    """Run pmuctl and end the process."""
    for number in ENDING:
        if _signal.getsignal(number) is not _signal.SIG_IGN:  # as nohup(1) sets it
            _signal.signal(number, _end_at_once)
    if sys.argv[1:] == ["--version"]:
        _print_version()
    if sys.argv[1:2] == ["__complete"]:
        from pmuctl.cli.tab.candidates import run
    else:
        from pmuctl.cli.main import run
    run()


def _end_at_once(number: int, _: object) -> None:
    """End the process with the signal's exit status: nothing has begun yet."""
    os._exit(ENDING[number])


def _print_version() -> None:
    """Print the version and end; if it cannot be written, return, so that `main` reports that."""
    from pmuctl import __version__

    try:
        sys.stdout.write(f"pmuctl {__version__}\n")
        sys.stdout.flush()
    except (OSError, AttributeError):
        return
    os._exit(0)
