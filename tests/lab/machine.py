# SPDX-License-Identifier: Apache-2.0
"""Boot the lab, run commands in it, move files in and out."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import devicetree, frames, image
from tests.lab.archive import run
from tests.lab.build import Builder
from tests.lab.cache import Cache
from tests.lab.channel import PATIENCE, Channel
from tests.lab.errors import CommandFailedError, CommandTimeoutError, LabError, Result
from tests.lab.hosts import HOSTS, Host
from tests.lab.job import Job, failure
from tests.lab.journal import Journal
from tests.lab.layers import find as find_layer

MACHINE = "virt,virtualization=on,gic-version=3"
# For a command that is killed to be gone.
KILL_TIMEOUT = 10.0


class Lab:
    """A running lab."""

    def __init__(self, channel: Channel, *, kernel: str, host: str) -> None:
        self.kernel = kernel
        self.host = host
        self.journal = Journal(channel)
        self._channel = channel

    @property
    def qemu_pid(self) -> int:
        """The process of the lab on this machine."""
        return self._channel.pid

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._channel.alive

    def pause(self) -> None:
        """Stop it with its clock until it is used again: one that idles costs a tenth of a CPU."""
        self._channel.pause()

    def start(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        stdin: bytes | None = b"",
        preloaded: bool = False,
    ) -> Job:
        """Start a process; without `stdin` (None) its input stays open for `Job.send`.

        It runs as root, or as `user`: a name, or UID:GID. One that is `preloaded`, pmuctl or a
        module of the lab's, is forked from a process that has imported all: forkserver.py.
        """
        job = Job(self._channel, args, env=env, user=user, cwd=cwd, preloaded=preloaded)
        self.journal.add(job)
        if stdin is not None:
            job.send(stdin)
            job.end_input()
        return job

    def run(
        self,
        args: Sequence[str],
        *,
        timeout: float = PATIENCE,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        preloaded: bool = False,
    ) -> Result:
        """Run a process to its end, and its process group no longer than `timeout` seconds."""
        job = self.start(args, env=env, user=user, cwd=cwd, stdin=stdin, preloaded=preloaded)
        try:
            result = job.wait(timeout)
        except CommandTimeoutError:
            job.kill(9)
            job.wait(KILL_TIMEOUT)
            raise
        if check and result.status:
            raise CommandFailedError(result)
        return result

    def read_file(self, path: str) -> bytes:
        """A file's content."""
        return self._ask(do="read", path=path)

    def write_file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Make a file; its directory must be there."""
        for index, piece in enumerate(list(frames.chunks(data)) or [b""]):
            packed = frames.pack(piece)
            self._ask(do="write", path=path, data=packed, mode=mode, more=index > 0)

    def read_files(self, pattern: str) -> dict[str, str]:
        """By path, what is in the files that a glob pattern finds: nothing in a socket."""
        files: dict[str, str] = json.loads(self._ask(do="read-all", pattern=pattern))
        return files

    def exists(self, path: str) -> bool:
        """Whether there is such a file, of any kind."""
        return self._ask(do="exists", path=path) == b"1"

    def kill(self, pid: int, signal: int) -> None:
        """Send a signal to a process; raises ProcessLookupError if there is none."""
        self._ask(do="signal", pid=pid, signal=int(signal))

    def wait_gone(self, pid: int) -> None:
        """Wait until there is no such process, or it is a zombie."""
        try:
            self._ask(do="wait-gone", pid=pid)
        except LabError as error:
            raise LabError(f"process {pid} has not ended: {error}") from error

    def find_processes(self, words: str) -> list[int]:
        """The processes in whose command line this regular expression is found."""
        cmdlines = self.read_files("/proc/[0-9]*/cmdline")
        found = (path for path, cmdline in cmdlines.items() if re.search(words, cmdline))
        return sorted(int(path.split("/")[2]) for path in found)

    def fetch(self, path: str, into: Path, *, timeout: float = PATIENCE) -> None:
        """Copy what is below a directory of the lab to one of this machine."""
        job = self.start(["tar", "-C", path, "-c", "."])
        result = job.wait(timeout)
        if result.status:
            raise CommandFailedError(result)
        into.mkdir(parents=True, exist_ok=True)
        unpack = ["tar", "-C", str(into), "-x", "--no-same-owner"]
        subprocess.run(unpack, input=job.raw("stdout"), check=True)

    def _ask(self, **request: object) -> bytes:
        self.journal.is_used = True
        reply = Reply()
        number = self._channel.open(reply.receive)
        try:
            self._channel.send(id=number, **request)
            reply.wait(self._channel)
        finally:
            self._channel.drop(number)
        if reply.error:
            raise reply.error
        return b"".join(reply.data)


class Reply:
    """What the agent answers to a request about a file."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.done = False
        self.error: OSError | None = None

    def receive(self, message: frames.Message) -> None:
        """One message of it."""
        match message["tell"]:
            case "data":
                self.data.append(frames.unpack(message["data"]))
            case "done":
                self.done = True
            case "failed":
                self.error, self.done = failure(message), True

    def wait(self, channel: Channel) -> None:
        """Until it is complete; the deadline is for each piece, a large file may take longer."""
        had = 0

        def moved() -> bool:
            return self.done or len(self.data) > had

        while not self.done:
            if not channel.wait_for(moved, PATIENCE):
                raise channel.error(f"no data within {PATIENCE:g} s")
            had = len(self.data)


@contextmanager
def boot(
    kernel: str = "newest",
    host: str = "two",
    mem: str = "2G",
    *,
    files: Mapping[str, image.Source] | None = None,
    layers: Sequence[str] = (),
    timeout: float = PATIENCE,
    echo: Callable[[str], None] | None = None,
) -> Iterator[Lab]:
    """A lab for as long as the block runs; `files` are put in by their absolute path there.

    `layers` names more of what it can have, such as "qemu-7.2": tests/lab/layers.py.
    `echo` is called with each line the console says.
    """
    builder = Builder(Cache.from_environment(os.environ), os.environ)
    with ExitStack() as stack:
        command, fds = prepare(stack, builder, kernel, host, mem, files or {}, layers)
        loglevel = 7 if echo else 1
        channel = Channel(
            [
                *command,
                *("-display", "none", "-monitor", "none", "-serial", "stdio"),
                *("-append", f"console=ttyAMA0 panic=-1 quiet loglevel={loglevel}"),
            ],
            pass_fds=fds,
            echo=echo or (lambda text: None),
        )
        stack.callback(channel.close)
        channel.wait_ready(timeout)
        lab = Lab(channel, kernel=builder.newest() if kernel == "newest" else kernel, host=host)
        try:
            yield lab
        except AssertionError as error:  # of a test that has this lab for itself
            error.add_note(lab.journal.text())
            raise


def shell(kernel: str, host: str, mem: str, layers: Sequence[str] = ()) -> int:
    """An interactive lab on this terminal; QEMU's exit status."""
    builder = Builder(Cache.from_environment(os.environ), os.environ)
    with ExitStack() as stack:
        command, fds = prepare(stack, builder, kernel, host, mem, {}, layers)
        command += ["-nographic", "-append", "console=ttyAMA0 panic=-1 quiet lab.shell"]
        return subprocess.call(["setpriv", "--pdeathsig", "KILL", *command], pass_fds=fds)


def prepare(
    stack: ExitStack,
    builder: Builder,
    kernel: str,
    host: str,
    mem: str,
    files: Mapping[str, image.Source],
    more: Sequence[str] = (),
) -> tuple[list[str], list[int]]:
    """QEMU's command line but for the console, and the open files it names.

    The image and the tree are in memory only, so that nothing is left of them however we end.
    """
    if host not in HOSTS:
        raise LabError(f"{host}: no such host; there are {', '.join(HOSTS)}")
    if shutil.which("cpio") is None:
        raise LabError("there is no cpio here; run tests/setup")
    base = qemu(builder.emulator(), HOSTS[host], mem)
    found = [find_layer(builder, name, kernel) for name in more]
    fds = [memory_file(stack, "initrd", image.initrd(builder, files, found))]
    command = [
        *base,
        *("-machine", MACHINE),
        *("-kernel", str(builder.kernel(kernel))),
        *("-initrd", f"/proc/self/fd/{fds[0]}"),
    ]
    if clusters := HOSTS[host].clusters:
        fds.append(memory_file(stack, "dtb", devicetree.rewrite(dump_tree(base), clusters)))
        command += ["-dtb", f"/proc/self/fd/{fds[1]}"]
    return command, fds


def qemu(emulator: str, host: Host, mem: str) -> list[str]:
    """The part of QEMU's command line that makes the hardware."""
    return [
        emulator,
        *("-cpu", host.model, "-smp", str(host.cpus), "-m", mem),
        # A thread for each CPU spins for those of others that do not run: with one lab a worker,
        # and so more threads than CPUs here, a VMM under ptrace takes eight times as long.
        *("-accel", "tcg,thread=single", "-nic", "none", "-no-reboot"),
    ]


def dump_tree(command: Sequence[str]) -> bytes:
    """The device tree QEMU makes for this hardware."""
    with tempfile.TemporaryDirectory(prefix="pmuctl-lab-") as scratch:
        path = Path(scratch) / "dtb"
        run(*command, "-display", "none", "-machine", f"{MACHINE},dumpdtb={path}")
        return path.read_bytes()


def memory_file(stack: ExitStack, name: str, data: bytes) -> int:
    """An open file without a name that holds this data."""
    fd = os.memfd_create(name)
    stack.callback(os.close, fd)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    return fd


def say(text: str) -> None:
    """One line to standard error: what `boot` may be given as `echo`."""
    print(text, file=sys.stderr, flush=True)
