# SPDX-License-Identifier: Apache-2.0
"""The labs of one process: booted at first use, shared, paused while no test uses them."""

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from tests.lab.errors import NoKernelError
from tests.lab.machine import Lab, boot

MEMORY_OF_EACH = 2 << 30
"""Bytes of this machine's memory for each lab: it takes half a gigabyte, with a QEMU inside up to
two."""
ALIVE_MIN, ALIVE_MAX = 3, 6

MEMORY, MEMORY_WITH_LAYERS = "2G", "3G"

# kernel, host, layers
Key = tuple[str, str, tuple[str, ...]]


class Pool:
    """Labs by kernel, host and layers: ALIVE_MIN to ALIVE_MAX, as this machine's memory allows."""

    def __init__(self) -> None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        room = memory // MEMORY_OF_EACH // workers
        self._alive_max = min(max(ALIVE_MIN, room), ALIVE_MAX)
        self._missing: dict[str, NoKernelError] = {}
        self._labs: OrderedDict[Key, tuple[Lab, ExitStack]] = OrderedDict()

    def __iter__(self) -> Iterator[Lab]:
        """Iterate over the labs there are, the one that was used last at the end."""
        return (lab for lab, _ in self._labs.values())

    def get(self, kernel: str, host: str, layers: tuple[str, ...] = ()) -> Lab:
        """Return a lab that has at least these layers; one that died is replaced.

        Raises NoKernelError if the archive has no such kernel (any more).
        """
        if kernel in self._missing:
            raise self._missing[kernel]
        key = find_usable_key(self._labs, (kernel, host, layers))
        lab, stack = self._labs.pop(key, (None, ExitStack()))
        if lab is None or not lab.alive:
            stack.close()
            while len(self._labs) >= self._alive_max:
                self._labs.popitem(last=False)[1][1].close()
            self.pause()
            stack = ExitStack()
            memory = MEMORY_WITH_LAYERS if key[2] else MEMORY
            try:
                lab = stack.enter_context(boot(kernel, host, memory, layers=key[2]))
            except NoKernelError as error:
                self._missing[kernel] = error
                raise
        self._labs[key] = lab, stack
        return lab

    def pause(self) -> None:
        """Pause every lab: each goes on by itself when it is used again."""
        for lab in self:
            lab.pause()

    def close(self) -> None:
        """End every lab."""
        while self._labs:
            self._labs.popitem()[1][1].close()


def find_usable_key(keys: Iterable[Key], wanted: Key) -> Key:
    """Of the labs there are, the one that will do; what is wanted, if none will."""
    kernel, host, layers = wanted
    for key in keys:
        if key[:2] == (kernel, host) and set(layers) <= set(key[2]):
            return key
    return wanted
