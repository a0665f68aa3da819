# SPDX-License-Identifier: Apache-2.0
"""The lab keeps what its interface promises, and is the host it claims to be."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.lab.errors import CommandFailedError, CommandTimeoutError, LabError
from tests.lab.image import ROOT
from tests.lab.machine import Lab, boot

EVENT_SOURCE = "/sys/bus/event_source/devices"


def test_host_has_its_pmus(lab: Lab) -> None:
    """Each PMU covers its cluster, and KVM is there."""
    cpus = lab.run(["sh", "-c", f"cd {EVENT_SOURCE}; grep . armv8_*/cpus"], check=True).stdout
    assert cpus.splitlines() == ["armv8_cortex_a53/cpus:0-1", "armv8_cortex_a72/cpus:2-3"]
    listing = lab.run(["ls", "-l", "/dev/kvm"], check=True).stdout
    assert listing.split()[0] == "crw-rw----"
    assert listing.split()[2:4] == ["root", "kvm"]


def test_plain_host_has_one_pmu(lab_one: Lab) -> None:
    """QEMU's own device tree is left alone."""
    names = lab_one.run(["ls", EVENT_SOURCE], check=True).stdout.split()
    assert [name for name in names if name.startswith("arm")] == ["armv8_pmuv3"]


def test_file_systems_are_mounted(lab: Lab) -> None:
    """What pmuctl and its tests read and write is there."""
    mounts = lab.run(["cat", "/proc/mounts"], check=True).stdout
    points = {line.split()[1] for line in mounts.splitlines()}
    wanted = {"/dev/shm", "/dev/pts", "/run", "/sys/kernel/debug", "/sys/kernel/tracing"}
    assert wanted <= points
    assert lab.run(["stat", "-c", "%a", "/run"]).stdout == "755\n"
    assert lab.run(["hostname"]).stdout == "lab\n"


def test_streams_and_status_come_back_apart(lab: Lab) -> None:
    """As from a process here."""
    result = lab.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (result.status, result.stdout, result.stderr) == (3, "out\n", "err\n")
    with pytest.raises(CommandFailedError, match="status 3"):
        lab.run(["sh", "-c", "exit 3"], check=True)


def test_death_by_signal_is_a_negative_status(lab: Lab) -> None:
    """As in the subprocess module."""
    assert lab.run(["sh", "-c", "kill -9 $$"]).status == -signal.SIGKILL


def test_stdin_environment_and_folder_are_passed(lab: Lab) -> None:
    """Also input of more than one frame."""
    text = b"0123456789abcde\n" * 2000
    result = lab.run(["sha256sum"], stdin=text, check=True)
    expected = subprocess.run(["sha256sum"], input=text, capture_output=True, check=True)
    assert result.stdout == expected.stdout.decode()
    script = 'echo "$WHAT"; pwd'
    assert lab.run(["sh", "-c", script], env={"WHAT": "x y"}, cwd="/run").stdout == "x y\n/run\n"


def test_large_output_is_whole(lab: Lab) -> None:
    """Also when the process ends long before it was read."""
    result = lab.run(["seq", "100000"], check=True)
    assert result.stdout == "".join(f"{n}\n" for n in range(1, 100001))


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        (None, "uid=0(root)"),
        ("admin", "uid=1000(admin) gid=1000(admin) groups=104(kvm)"),
        ("1001:1001", "uid=1001(other) gid=1001(other)"),
    ],
)
def test_user_is_chosen(lab_newest: Lab, user: str | None, identity: str) -> None:
    """By name or by numbers, with the groups of the name."""
    assert lab_newest.run(["id"], user=user, check=True).stdout.startswith(identity)
    usable = lab_newest.run(["test", "-w", "/dev/kvm"], user=user).status == 0
    assert usable == (user != "1001:1001")


def test_missing_command_is_an_os_error(lab: Lab) -> None:
    """It names the command."""
    with pytest.raises(FileNotFoundError, match="no-such-command"):
        lab.run(["no-such-command"])


def test_command_out_of_time_is_killed(lab: Lab) -> None:
    """With what it had started, and its output so far is told."""
    with pytest.raises(CommandTimeoutError) as caught:
        lab.run(["sh", "-c", "echo begun; sleep 321 & wait"], timeout=0.7)
    assert caught.value.output == "begun\n"
    assert "sleep 321" not in lab.run(["ps", "-o", "args"], check=True).stdout


def test_files_go_in_and_out(lab: Lab, tmp_path: Path) -> None:
    """Byte by byte, with their mode; a whole directory at once."""
    data = bytes(range(256)) * 100
    lab.write_file("/tmp/data", data, 0o640)
    assert lab.read_file("/tmp/data") == data
    assert lab.run(["stat", "-c", "%a", "/tmp/data"]).stdout == "640\n"
    lab.write_file("/tmp/data", b"")
    assert lab.read_file("/tmp/data") == b""
    with pytest.raises(FileNotFoundError, match="/tmp/none"):
        lab.read_file("/tmp/none")
    lab.run(["sh", "-c", "mkdir -p /out/d && echo hello >/out/d/file"], check=True)
    lab.fetch("/out", tmp_path)
    assert (tmp_path / "d/file").read_text() == "hello\n"


def test_background_job_talks_while_others_run(lab: Lab) -> None:
    """Several processes at once, each with its own streams."""
    job = lab.start(
        ["sh", "-c", "echo ready; while read line; do echo got $line; done"], stdin=None
    )
    assert job.wait_for(r"^ready$", 10)
    assert lab.run(["cat", f"/proc/{job.pid}/comm"]).stdout == "sh\n"
    job.send(b"one\n")
    assert job.wait_for(r"^got (\w+)$", 10)[1] == "one"
    assert job.status is None
    job.end_input()
    assert job.wait(10).status == 0
    assert job.output() == "ready\ngot one\n"


def test_background_job_is_signalled(lab: Lab) -> None:
    """Waiting for what an ended process never said ends at once."""
    job = lab.start(["sleep", "1000"])
    job.kill(signal.SIGINT)
    assert job.wait(10).status == -signal.SIGINT
    started = time.monotonic()
    with pytest.raises(CommandTimeoutError):
        job.wait_for("never", 30)
    assert time.monotonic() - started < 5


def test_kernel_messages_do_no_harm(lab: Lab) -> None:
    """Not even an emergency between two frames."""
    lab.run(["sh", "-c", "echo '<0>lab: an emergency' >/dev/kmsg"], check=True)
    assert lab.run(["echo", "fine"]).stdout == "fine\n"


def test_pyudev_finds_devices(lab: Lab) -> None:
    """It needs libudev, through the linker's cache."""
    script = "import pyudev; print(len(list(pyudev.Context().list_devices(subsystem='cpu'))))"
    assert lab.run(["python3", "-c", script], check=True).stdout == "4\n"


def test_python_is_compiled_beforehand(lab: Lab) -> None:
    """By the same version, and under the paths it has here; else each command takes seconds."""
    script = (
        "import importlib.util, json, pmuctl.errors, pyudev, rich, tests.lab.frames, typer\n"
        "for m in (json, pmuctl.errors, pyudev, rich, tests.lab.frames, typer):\n"
        "    with open(m.__cached__, 'rb') as file:\n"
        "        assert file.read(4) == importlib.util.MAGIC_NUMBER, m\n"
        "print(json.loads.__code__.co_filename)"
    )
    result = lab.run(["python3", "-c", script], check=True)
    assert result.stdout == "/usr/lib/python3.11/json/__init__.py\n"


def test_pmuctl_of_this_tree_is_installed(lab: Lab) -> None:
    """Its modules are those of the working tree."""
    script = "import pmuctl; print(pmuctl.__version__, pmuctl.__file__)"
    version, path = lab.run(["python3", "-c", script], check=True).stdout.split()
    assert path == "/usr/lib/python3/dist-packages/pmuctl/__init__.py"
    assert lab.read_file(path) == (ROOT / "pmuctl/__init__.py").read_bytes()
    assert version in (ROOT / "pmuctl/__init__.py").read_text()


def test_nothing_is_left_after_close() -> None:
    """And files given to `boot` were there."""
    with boot(files={"/srv/given": b"bytes"}) as lab:
        pid = lab.qemu_pid
        assert lab.read_file("/srv/given") == b"bytes"
    assert not is_running(pid)


def test_dead_qemu_is_a_lab_error() -> None:
    """Told at once, not after a timeout."""
    with boot() as lab:
        job = lab.start(["sleep", "1000"])
        os.kill(lab.qemu_pid, signal.SIGKILL)
        with pytest.raises(LabError, match="QEMU ended with status -9"):
            job.wait(60)
        with pytest.raises(LabError):
            lab.run(["true"])
        assert not lab.alive


def test_panic_is_told_with_the_console() -> None:
    """The console's last lines say why."""
    with boot() as lab, pytest.raises(LabError, match="Kernel panic"):
        lab.run(["sh", "-c", "echo c >/proc/sysrq-trigger"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_signalled_run_leaves_no_qemu(number: signal.Signals) -> None:
    """However the runner ends."""
    runner = start_runner("--", "sh", "-c", "echo up; exec sleep 1000")
    with runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == b"up\n"
        children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children").read_text().split()
        assert len(children) == 1
        runner.send_signal(number)
    assert runner.returncode == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + 10
    while is_running(int(children[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(children[0]))


@pytest.mark.parametrize(
    ("script", "status"), [("exit 7", 7), ("kill -15 $$", 143), ("sleep 1000", 124)]
)
def test_run_exits_as_the_command(script: str, status: int, tmp_path: Path) -> None:
    """Streams apart, files of /out brought back."""
    script = f"echo out; echo err >&2; echo file >/out/file; {script}"
    with start_runner("--timeout=3", f"--out={tmp_path}", "--", "sh", "-c", script) as runner:
        stdout, stderr = runner.communicate()
    assert (runner.returncode, stdout) == (status, b"out\n")
    assert stderr.startswith(b"err\n")
    assert (tmp_path / "file").exists() == (status != 124)


def test_run_puts_in_the_layers_that_are_named() -> None:
    """QEMU of Debian 12 is there, and what no layer has is told."""
    with start_runner("--layer", "qemu-7.2", "--", "qemu-7.2", "--version") as runner:
        stdout, _ = runner.communicate()
    assert (runner.returncode, b" version 7.2." in stdout) == (0, True)
    with start_runner("--layer", "qemu-1", "--", "true") as runner:
        _, stderr = runner.communicate()
    assert (runner.returncode, b"qemu-1: no such layer; there are" in stderr) == (125, True)


def test_run_says_why_the_lab_failed() -> None:
    """With a status of its own."""
    with start_runner("--kernel=nonsense", "--", "true") as runner:
        _, stderr = runner.communicate()
    assert runner.returncode == 125
    assert b"nonsense: not a kernel series" in stderr


def test_shell_is_interactive() -> None:
    """On a terminal; the lab ends with it."""
    terminal, inner = os.openpty()
    command = [sys.executable, "-m", "tests.lab", "--shell"]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=inner, stdout=inner, stderr=inner, start_new_session=True
    ) as shell:
        os.close(inner)
        read_until(terminal, b"# ")
        os.write(terminal, b"echo $((6 * 7)) $(hostname)\n")
        read_until(terminal, b"42 lab")
        os.write(terminal, b"exit\n")
    os.close(terminal)
    assert shell.returncode == 0


def read_until(terminal: int, text: bytes) -> None:
    """Until the terminal has shown this."""
    shown = b""
    while text not in shown:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, shown
        shown += os.read(terminal, 4096)


def start_runner(*args: str) -> subprocess.Popen[bytes]:
    """The lab's command line, as another process."""
    command: Sequence[str] = [sys.executable, "-m", "tests.lab", *args]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def is_running(pid: int) -> bool:
    """Whether there is such a process, other than a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
