# SPDX-License-Identifier: Apache-2.0
"""Small VMMs that set up their vPMU as real ones do, for tests of what is done to real ones.

`python3 -m tests.lab.standins VMM [OPTION]…` in the lab; `kinds` has the VMMs, `vm` what they
share, `__main__` the command line.
"""
