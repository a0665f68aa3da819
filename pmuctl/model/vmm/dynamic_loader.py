# SPDX-License-Identifier: Apache-2.0
"""Command lines that begin with a dynamic loader, which starts the program after its own options.

The options are those of glibc's elf/rtld.c (dl_main()) and of musl's ldso/dynlink.c.
"""

import re
from collections.abc import Sequence

_LOADER = r"ld(?:\.so|-linux[-\w.]*\.so|-musl-[-\w]+\.so|-[0-9.]+\.so)(?:\.[0-9]+)*"
_WITH_WORD = frozenset(
    {
        *("--library-path", "--inhibit-rpath", "--audit", "--preload", "--argv0"),
        *("--glibc-hwcaps-prepend", "--glibc-hwcaps-mask"),
    }
)
"""The options that take the next word."""


def skip_loader(argv: Sequence[str]) -> Sequence[str]:
    """Return the command line of the program that a loader starts; any other as it is.

    Return it as it is, too, if the loader starts none.
    """
    program = argv[0].rpartition("/")[2] if argv else ""
    # nearly no VMM needs the pattern, which takes longer to compile than the rest
    if not program.startswith("ld") or not re.fullmatch(_LOADER, program):
        return argv
    position = 1
    while position < len(argv) and argv[position].startswith("--"):
        word = argv[position]
        position += 2 if word in _WITH_WORD else 1
        if word == "--":
            break
    return argv[position:] or argv
