# SPDX-License-Identifier: Apache-2.0
"""Job control of a shell with a command behind the gate: as without it."""

import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import pytest

from tests.fakes.peers import PATIENCE
from tests.launch.native import Behind, processes_of, wait_for
from tests.skips import skip

PROMPT = "@@ "
SLEEP = ("sleep", "100")
PYTHON = (sys.executable, "-I", "-S", "-c")


@pytest.fixture
def shell() -> Iterator[Callable[[str, str], str]]:
    """An interactive bash on a terminal: send a line, get what there is up to a pattern."""
    bash = shutil.which("bash")
    if bash is None:
        skip("bash is not installed", runs="with the package bash")
    its = pexpect.spawn(
        bash,
        ["--norc", "--noprofile", "-i"],
        env={"PS1": PROMPT, "PATH": "/usr/bin:/bin", "TERM": "dumb"},
        encoding="utf-8",
        echo=False,
        timeout=PATIENCE,
    )
    its.expect_exact(PROMPT)

    def send(line: str, until: str = PROMPT) -> str:
        if len(line) == 1 and line < " ":
            its.send(line)
        else:
            its.sendline(line)
        its.expect_exact(until)
        return str(its.before).replace("\r", "")

    yield send
    its.close(force=True)


def line_of(argv: tuple[str, ...]) -> str:
    return shlex.join(argv)


@pytest.mark.parametrize("gated", [False, True], ids=["without", "behind"])
def test_stop_continue_and_interrupt(
    shell: Callable[..., str],
    behind: Behind,
    gated: bool,  # noqa: FBT001
) -> None:
    code = "import os, time; print('ready', os.getpid(), flush=True); time.sleep(100)"
    command = (*PYTHON, f"import signal; signal.signal(2, 0); {code}")
    shell(line_of(behind.argv(command) if gated else command), "ready ")
    pid = int(shell("\x1a").split()[0])
    assert f"{pid} " in shell("jobs -l")
    assert "Stopped" in shell("jobs -l")
    assert shell("echo $!").strip() in ("", str(pid))
    shell("fg", "100)")
    shell("\x03")
    assert shell("echo status=$?") == "status=130\n"
    assert shell("jobs") == ""
    if gated:
        wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")


@pytest.mark.parametrize("gated", [False, True], ids=["without", "behind"])
def test_group_session_and_terminal(
    shell: Callable[..., str],
    behind: Behind,
    gated: bool,  # noqa: FBT001
) -> None:
    code = (
        "import os; print(os.getpid() == os.getpgid(0) == os.tcgetpgrp(0), "
        "os.getsid(0) == os.getppid(), os.isatty(2), os.ttyname(1) == os.ttyname(0))"
    )
    command = (*PYTHON, code)
    said = shell(line_of(behind.argv(command) if gated else command))
    assert said == "True True True True\n"


def test_a_job_in_the_background_has_the_pid_of_the_command(
    shell: Callable[..., str], behind: Behind
) -> None:
    said = shell(line_of(behind.argv(SLEEP)) + " & echo its=$!")
    pid = re.search(r"its=(\d+)", said)
    assert pid is not None, said
    wait_for(
        lambda: Path(f"/proc/{pid[1]}/comm").read_text() == "sleep\n", "the command is executed"
    )
    assert "Running" in shell("jobs -r")
    shell("kill %1; wait %1; echo")
    wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")


def test_a_terminal_that_hangs_up_ends_it(behind: Behind) -> None:
    executable, *words = behind.argv(("cat",))
    its = pexpect.spawn(executable, words, echo=False)
    its.sendline("hi")
    its.expect_exact("hi")
    its.close(force=False)
    assert its.signalstatus == 1
    wait_for(lambda: not processes_of(behind.names[0]), "the supervisor leaves")
