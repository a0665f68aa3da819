# SPDX-License-Identifier: Apache-2.0
"""QEMUs that serve QMP: asked where the monitor is free, left alone where somebody has it."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tests.lab.channel import PATIENCE
from tests.lab.job import Job
from tests.lab.machine import Lab
from tests.lab.runs import by_name, started
from tests.lab.vmms import put_bare_metal, qemu
from tests.lab.vms import clear_sockets, pmuctl
from tests.lab.workloads.bare import End

PATH = "/tmp/qmp-{}"
SERVED = "server=on,wait=off"
CLIENT = """
import itertools, json, socket, sys
qmp = socket.socket(socket.AF_UNIX)
qmp.connect(sys.argv[1])
lines = qmp.makefile("rw")
said = json.loads(lines.readline())
for command in itertools.chain(["qmp_capabilities"], map(str.strip, sys.stdin)):
    print(said, flush=True)
    lines.write(json.dumps({"execute": command}) + "\\n")
    lines.flush()
    said = json.loads(lines.readline())
    while "event" in said:
        said = json.loads(lines.readline())
    print("did", command, said, flush=True)
"""

ASK = """
import socket, sys, time
for path in sys.argv[1:]:
    qmp, began = socket.socket(socket.AF_UNIX), time.monotonic()
    qmp.settimeout(9)
    try:
        qmp.connect(path)
        said = qmp.recv(99)
    except OSError as error:
        said = error
    print(path, said, f"{time.monotonic() - began:.2f} s")
"""
"""What each monitor says to who connects, and after how long."""


class Client:
    """Somebody at a monitor: libvirt, say."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def do(self, command: str) -> None:
        """A command, which QEMU must answer."""
        self._job.send(f"{command}\n".encode())
        self._job.wait_for(rf"^did {command} {{'return'")


@contextmanager
def holding(lab: Lab, path: str) -> Iterator[Client]:
    """A client that has the monitor."""
    job = lab.start(["python3", "-c", CLIENT, path], stdin=None)
    try:
        job.wait_for("^did qmp_capabilities {'return'")
        yield Client(job)
    finally:
        job.end_input()
        job.wait()


def rows(lab: Lab) -> dict[str, dict[str, Any]]:
    ran = pmuctl(lab, "vm", "list", "-J", "-O")
    assert ran.status == 0, ran
    return {row["name"]: row for row in json.loads(ran.stdout)["vms"]}


def threads(row: dict[str, Any]) -> tuple[dict[int, int], set[str]]:
    """By vCPU, its thread; and how that is known."""
    vcpus = row["vcpu_list"]
    return {its["vcpu"]: its["tid"] for its in vcpus}, {its["evidence"] for its in vcpus}


def wait_asked(lab: Lab) -> dict[str, dict[str, Any]]:
    """The VMs, once all have answered in time: emulated QEMUs can take too long."""
    until = time.monotonic() + PATIENCE
    while True:
        seen = rows(lab)
        if all(threads(row)[1] == {"qmp"} for row in seen.values()):
            return seen
        if time.monotonic() >= until:
            evidence = {name: threads(row) for name, row in seen.items()}
            sockets = lab.run(["grep", "qmp", "/proc/net/unix"]).stdout
            asked = lab.run(["timeout", "30", "python3", "-c", ASK, *map(PATH.format, seen)])
            pytest.fail(f"not all answer: {evidence}\n{sockets}{asked.stdout}{asked.stderr}")


@pytest.fixture
def pids(qemu_lab: Lab) -> Iterator[dict[str, int]]:
    """Three QEMUs with a monitor each, two that run and one that has not started: processes."""
    lab = qemu_lab
    clear_sockets(lab)
    guest = put_bare_metal(lab, End.WFI)
    path = {name: PATH.format(name) for name in ("short", "long", "still")}
    monitors = {
        "short": ("-qmp", f"unix:{path['short']},{SERVED}"),
        "long": (
            *("-chardev", f"socket,id=c,path={path['long']},{SERVED}"),
            *("-mon", "chardev=c,mode=control"),
        ),
        "still": ("-S", "-qmp", f"unix:{path['still']},{SERVED}"),
    }
    with ExitStack() as stack:
        its = {}
        for name, words in monitors.items():
            vmm = qemu("7.2", *guest, "-name", f"guest={name},debug-threads=on", *words)
            its[name] = stack.enter_context(started(lab, *vmm, said=""))
        for name in ("short", "long"):
            its[name].wait_for(r"(?s)(GUEST.*\n){2}")
        script = f"until [ -S {path['still']} ]; do sleep 0.1; done"
        lab.run(["sh", "-c", script], check=True)
        yield {name: job.pid for name, job in its.items()}


def test_monitors_are_asked_and_left_alone(qemu_lab: Lab, pids: dict[str, int]) -> None:
    lab = qemu_lab
    tids = {name: by_name(lab, pid, "CPU {}/KVM") for name, pid in pids.items()}
    seen = wait_asked(lab)
    assert {name: row["pid"] for name, row in seen.items()} == pids
    assert {name: threads(row)[0] for name, row in seen.items()} == tids
    assert [seen[name]["state"] for name in pids] == ["running", "running", "starting"]

    with holding(lab, PATH.format("long")) as client, holding(lab, PATH.format("still")) as other:
        other.do("cont")
        client.do("stop")
        seen = rows(lab)
        assert threads(seen["short"])[0] == tids["short"]
        for name in ("long", "still"):
            found, evidence = threads(seen[name])
            assert found == tids[name]
            assert evidence <= {"debugfs", "kvm-run", "name"}
        # nobody was let wait in the queue, which has room for few
        waiting = lab.run(
            ["grep", "-cE", f" 02 +[0-9]+ {PATH.format('(long|still)')}$", "/proc/net/unix"]
        )
        assert waiting.stdout.strip() == "0"
        client.do("query-status")
        other.do("query-status")
    seen = wait_asked(lab)
    assert {name: threads(row)[0] for name, row in seen.items()} == tids
    assert [seen[name]["state"] for name in pids] == ["running", "paused", "running"]
