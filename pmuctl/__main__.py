# SPDX-License-Identifier: Apache-2.0
"""`python3 -m pmuctl`, which is pmuctl."""

from pmuctl.cli.entry import run

if __name__ == "__main__":
    run()
