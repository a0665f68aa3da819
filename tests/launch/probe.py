# SPDX-License-Identifier: Apache-2.0
"""What a process finds itself in, as one JSON object: to be the same with a gate and without."""

import json
import os
import resource

KEPT = ("SigBlk", "SigIgn", "SigCgt", "ShdPnd", "SigPnd", "Umask", "Cpus_allowed_list", "Uid")


def descriptors() -> dict[int, str]:
    """All open ones, but for that of the look itself."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue
    return found


def children() -> str:
    """What wait(2) says of them."""
    try:
        return str(os.waitpid(-1, os.WNOHANG))
    except ChildProcessError as error:
        return type(error).__name__


def main() -> None:
    with open("/proc/self/status") as file:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    limits = {
        name: resource.getrlimit(getattr(resource, name))
        for name in dir(resource)
        if name.startswith("RLIMIT_")
    }
    found = {
        "cwd": os.getcwd(),
        "environment": {os.fsdecode(k): os.fsdecode(v) for k, v in os.environb.items()},
        "descriptors": descriptors(),
        "status": {name: lines[name] for name in KEPT},
        "limits": limits,
        "nice": os.nice(0),
        "session": [os.getsid(0), os.getpgid(0), os.getppid()],
        "pid": os.getpid(),
        "children": children(),
        "threads": len(os.listdir("/proc/self/task")),
    }
    print(json.dumps(found, sort_keys=True))


if __name__ == "__main__":
    main()
