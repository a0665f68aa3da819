# SPDX-License-Identifier: Apache-2.0
"""Starts a stand-in fast: `python3 -P -S` this file, without what `site` and `-m` load."""

import sys

SITE = "/usr/lib/python3/dist-packages"

if __name__ == "__main__":
    sys.path.append(SITE)
    from tests.lab.standins.__main__ import main

    sys.exit(main())
