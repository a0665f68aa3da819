# SPDX-License-Identifier: Apache-2.0
"""A file system in another user's directory whose server never answers: nobody waits for it."""

import json
import os
import subprocess
import sys

import pytest

from tests.cli.conftest import Ran
from tests.skips import only_root, skip_if

FUSE = """
import ctypes, os, struct, sys
def mount(kind, place, options):
    if ctypes.CDLL(None, use_errno=True).mount(b"none", place, kind, 0, options):
        raise OSError(ctypes.get_errno(), "mount")
os.makedirs("/run/user", exist_ok=True)
mount(b"tmpfs", b"/run/user", b"")
os.makedirs("/run/user/1234/pmuctl")
os.chown("/run/user/1234", 1234, 1234)
os.chown("/run/user/1234/pmuctl", 1234, 1234)
fd = os.open("/dev/fuse", os.O_RDWR)
mount(b"fuse", sys.argv[1].encode(),
      f"fd={fd},rootmode=40000,user_id=0,group_id=0,allow_other".encode())
FUSE_INIT = 26
while True:
    request = os.read(fd, 1 << 18)
    opcode, unique = struct.unpack_from("<IQ", request, 4)
    if opcode == FUSE_INIT:
        answer = struct.pack("<II", 7, 31).ljust(64, bytes(1))
        os.write(fd, struct.pack("<IiQ", 16 + len(answer), 0, unique) + answer)
        print(flush=True)
"""
"""Reads every request, and answers only the first: whoever waits cannot even be killed."""
PMUCTL = "from pmuctl.cli.entry import run; run()"
ENDS = 60
"""Seconds in which a command that waits for nobody has ended for certain."""


@only_root("only root can mount what never answers")
@skip_if(not os.path.exists("/dev/fuse"), "there is no FUSE", runs="with /dev/fuse")
@pytest.mark.parametrize("place", ["/run/user/1234", "/run/user/1234/pmuctl"])
def test_a_mount_that_never_answers_hangs_no_command(place: str) -> None:
    argv = ["unshare", "-m", sys.executable, "-c", FUSE, place]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"\n"
            ran = {line: run(server, *line.split()) for line in ("vm list", "affinity check")}
            doctor = run(server, "doctor")
            listing = run(server, "vm", "list", "-J")
            names = run(server, "__complete", "2", "vm", "show", "w")
        finally:
            server.kill()
    assert json.loads(listing.stdout)["unsearched"] == ["/run/user/1234/pmuctl"]
    assert "host.runtime-dir" in doctor.stdout
    assert "/run/user/1234/pmuctl" in doctor.stdout
    for seen in ran.values():
        assert seen.status == 0
        assert "/run/user/1234/pmuctl is not searched" in seen.stderr
    assert (names.status, names.stderr) == (0, "")


def run(server: subprocess.Popen[bytes], *words: str) -> Ran:
    """What pmuctl does in the mount namespace of a process."""
    namespace = f"--mount=/proc/{server.pid}/ns/mnt"
    argv = ["nsenter", namespace, sys.executable, "-P", "-c", PMUCTL, *words]
    environ = {key: text for key, text in os.environ.items() if not key.startswith("PMUCTL_")}
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            stdout, stderr = process.communicate(timeout=ENDS)
        except subprocess.TimeoutExpired:
            server.kill()  # until then nothing can end who waits for it
            process.kill()
            raise
        return Ran(process.returncode, stdout, stderr)
