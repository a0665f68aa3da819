# SPDX-License-Identifier: Apache-2.0
"""What was asked of a lab during one test, and what it said: shown with the test if it fails."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.channel import Channel
from tests.lab.errors import CommandTimeoutError
from tests.lab.job import Job

JOBS_MAX = 40
OUTPUT_MAX = 4000
"""Characters of a job's output, its end."""
STATE_SECONDS = 20.0

# Who is there, what supervisors have recorded, and the kernel's own log.
STATE = r"""
for file in /run/pmuctl/*.json /run/user/*/pmuctl/*.json /tmp/*.err; do
    [ ! -e "$file" ] || { echo "$file:"; cat "$file"; echo; }
done
echo processes:
ps -o pid,ppid,stat,args | grep -v '\]$'
ours='[l]aunch/__main__|[q]emu-system|[l]ab.(standins|vmm)'
for file in $(grep -laE "$ours" /proc/[0-9]*/cmdline); do
    grep -HE '^(Name|State|TracerPid|Sig...|Cpus_allowed_list):' ${file%cmdline}task/*/status
done
echo kernel:
# a warning or a fault, from its first line on, though others came after it
dmesg | sed -n '/cut here\|Unable to handle\|Internal error/,/end trace/p' | head -n 80
dmesg | tail -n 40
"""


class Journal:
    """The jobs of a lab since a test began, and its state at some moments of it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._jobs: list[Job] = []
        self._states: list[str] = []
        self._is_mute = False
        self.is_used = False
        """Whether the test has asked anything of this lab."""

    def begin(self) -> None:
        """Forget what was before: a test begins."""
        self._jobs.clear()
        self._states.clear()
        self.is_used = False

    def add(self, job: Job) -> None:
        """Keep a job that was started."""
        self.is_used = True
        self._jobs.append(job)

    def add_state(self, when: str) -> None:
        """Keep what there is in the lab now."""
        self._states.append(f"--- {when}:\n{self._read_state()}")

    @contextmanager
    def on_failure(self, when: str) -> Iterator[None]:
        """Keep what there is in the lab if the block fails, before what follows cleans it up."""
        try:
            yield
        except BaseException:  # that of pytest.fail() is no Exception
            self.add_state(when)
            raise

    def text(self) -> str:
        """All of it, with what there is now."""
        self.add_state("now")
        last = self._jobs[-JOBS_MAX:]
        parts = [*map(describe_job, last), *self._states]
        if len(last) < len(self._jobs):
            parts.insert(0, f"--- {len(self._jobs) - len(last)} earlier commands are not shown")
        return "\n".join((*parts, "--- the console's last lines:", self._channel.tail()))

    def _read_state(self) -> str:
        if not self._channel.alive:
            return "the lab has ended"
        if self._is_mute:
            return "the lab did not answer before: it was not asked again"
        try:
            job = Job(self._channel, ["sh", "-c", STATE])
            job.end_input()
            try:
                return job.wait(STATE_SECONDS).stdout
            except CommandTimeoutError:
                job.kill(signal.SIGKILL)
                raise
        except Exception as error:  # what the test has failed with is told in any case
            self._is_mute = True  # each try may take minutes
            return f"it cannot be told: {error}"


def describe_job(job: Job) -> str:
    """Its words, how it ended, and the end of what it has said."""
    how = "still runs" if job.status is None else f"status {job.status}"
    output = job.output()
    cut = "…" if len(output) > OUTPUT_MAX else ""
    return f"--- {' '.join(job.args)} ({how})\n{cut}{output[-OUTPUT_MAX:]}".rstrip("\n")
