# SPDX-License-Identifier: Apache-2.0
"""The reference VMM: the smallest one that has a vPMU and lets pmuctl set it up.

`machine` makes the VM, `guest` is what runs in it, `door` is what the control server sees of it,
`__main__` is the order of events. Run it as `python3 -m tests.lab.vmm --help` on an arm64 host.
"""
