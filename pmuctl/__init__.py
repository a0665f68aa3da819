# SPDX-License-Identifier: Apache-2.0
"""Choose the PMU, the counters and the event filter of KVM guests on arm64 hosts."""

__version__ = "0.1.0"
