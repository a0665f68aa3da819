# SPDX-License-Identifier: Apache-2.0
"""Many control sockets that answer every command with 1 MiB, in a process of its own.

`python tests/fakes/flood.py DIRECTORY COUNT KIND` prints a line once all of them listen, and ends
with its standard input. It imports nothing but the standard library.

Of kind "turns" they answer with little, in turns once with much, and then no more.
"""

import asyncio
import json
import os
import resource
import sys

SIZE = 1 << 20

WHOLE: dict[str, object] = {
    "uuid": None,
    "vmm": "flood",
    "window": "open",
    "since": None,
    "by": None,
    "attributes": [],
    "pmu": None,
    "counters": None,
    "filter": None,
    "vcpus": [],
}
GREETING = b'{"QMP":{"version":{},"capabilities":[]}}\n'


def make_answer(kind: str, name: str, *, is_turn: bool = False) -> bytes:
    """A result of query-pmu of nearly SIZE bytes, which are `kind`."""
    answer = WHOLE | {"name": name, "pid": os.getpid()}
    if kind == "turns":
        # a process without a VM is believed about another one
        words = ["\U0001f600" + "x" * 60] * 4090
        answer |= {"pid": os.getppid(), "attributes": words if is_turn else []}
        return json.dumps(answer, ensure_ascii=False).encode()
    if kind == "known":
        answer["by"] = "\u20ac" * 4096
        answer["attributes"] = [f"{n:x}" for n in range(4096)]
        ranges = [[2 * n % 0x10000, 1] for n in range(1 << 15)]
        answer["filter"] = {"default": "deny", "except": ranges, "origin": "applied"}
        vcpu = {"initialised": True, "has-run": True}
        answer["vcpus"] = [vcpu | {"index": 1000 + n, "tid": 1000 + n} for n in range(4096)]
        return json.dumps(answer).encode()
    text = json.dumps(answer).encode()[:-1]
    item = {"objects": b'{"":0}', "lists": b"[]", "texts": b'"\\ud83d\\ude00"'}[kind]
    count = (SIZE - len(text) - 200) // (len(item) + 1)
    return text + b',"later":[' + b",".join([item] * count) + b"]}"


async def serve(directory: str, count: int, kind: str) -> None:
    queries: dict[str, int] = {}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = writer.get_extra_info("sockname")
        writer.write(GREETING)
        while line := await reader.readline():
            request = json.loads(line)
            result = b"{}"
            if request["execute"] != "qmp_capabilities":
                name = os.path.basename(path).removesuffix(".sock")
                turn = int(name.removeprefix("flood")) // 12 - queries.get(name, 0)
                queries[name] = queries.get(name, 0) + 1
                if kind == "turns" and turn < 0:
                    return
                result = make_answer(kind, name, is_turn=turn == 0)
            tag = json.dumps(request.get("id")).encode()
            writer.write(b'{"return":' + result + b',"id":' + tag + b"}\n")
            await writer.drain()

    def log_nothing(loop: asyncio.AbstractEventLoop, context: object) -> None:
        """Clients leave in the middle of an answer."""

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_nothing)
    servers = [
        await asyncio.start_unix_server(answer, f"{directory}/flood{n}.sock") for n in range(count)
    ]
    print(f"{len(servers)} listen", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    os._exit(0)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    asyncio.run(serve(sys.argv[1], int(sys.argv[2]), sys.argv[3]))
