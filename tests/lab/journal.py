# SPDX-License-Identifier: Apache-2.0
"""What was asked of a lab during one test, and what it said: shown with the test if it fails."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from tests.lab.channel import Channel
from tests.lab.errors import CommandFailedError, CommandTimeoutError, LabError
from tests.lab.job import Job

JOBS_MAX = 40
OUTPUT_MAX = 4000
"""Characters of a job's output, its end."""
STATE_SECONDS = 20.0

# Who is there, what supervisors have recorded, and the kernel's own log.
STATE = r"""
for file in /run/pmuctl/*.json /run/user/*/pmuctl/*.json; do
    [ ! -e "$file" ] || { echo "$file:"; cat "$file"; echo; }
done
echo processes:
ps -o pid,ppid,stat,args | grep -v '\]$'
ours='[l]aunch/__main__|[q]emu-system|[l]ab.(standins|vmm)'
for file in $(grep -laE "$ours" /proc/[0-9]*/cmdline); do
    grep -HE '^(Name|State|TracerPid|Sig...|Cpus_allowed_list):' ${file%cmdline}task/*/status
done
echo kernel:
dmesg | tail -n 40
"""


class Journal:
    """The jobs of a lab since a test began, and its state at some moments of it."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._jobs: deque[Job] = deque(maxlen=JOBS_MAX)
        self._states: list[str] = []

    @property
    def is_empty(self) -> bool:
        """Whether the test has asked nothing of this lab."""
        return not self._jobs

    def begin(self) -> None:
        """Forget what was before: a test begins."""
        self._jobs.clear()
        self._states.clear()

    def add(self, job: Job) -> None:
        """Keep a job that was started."""
        self._jobs.append(job)

    def add_state(self, when: str) -> None:
        """Keep what there is in the lab now."""
        self._states.append(f"--- {when}:\n{self._read_state()}")

    @contextmanager
    def on_failure(self, when: str) -> Iterator[None]:
        """Keep what there is in the lab if the block fails, before what follows cleans it up."""
        try:
            yield
        except Exception:
            self.add_state(when)
            raise

    def text(self) -> str:
        """All of it, with what there is now."""
        self.add_state("now")
        parts = [*map(describe_job, self._jobs), *self._states]
        return "\n".join((*parts, "--- the console's last lines:", self._channel.tail()))

    def _read_state(self) -> str:
        if not self._channel.alive:
            return "the lab has ended"
        try:
            job = Job(self._channel, ["sh", "-c", STATE])
            job.end_input()
            return job.wait(STATE_SECONDS).stdout
        except (LabError, CommandFailedError, CommandTimeoutError, OSError) as error:
            return f"it cannot be told: {error}"


def describe_job(job: Job) -> str:
    """Its words, how it ended, and the end of what it has said."""
    how = "still runs" if job.status is None else f"status {job.status}"
    output = job.output()
    cut = "…" if len(output) > OUTPUT_MAX else ""
    return f"--- {' '.join(job.args)} ({how})\n{cut}{output[-OUTPUT_MAX:]}".rstrip("\n")
