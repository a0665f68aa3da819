# SPDX-License-Identifier: Apache-2.0
"""A process that may open nothing more, as with a low `ulimit -n`."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_descriptors(spare: int = 0) -> Iterator[None]:
    """Within, whatever would open a file gets EMFILE, but for `spare` ones at a time."""
    free = os.dup(2)
    os.close(free)  # the lowest that is free, and so the next one
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + spare, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
