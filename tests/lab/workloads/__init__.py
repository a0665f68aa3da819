# SPDX-License-Identifier: Apache-2.0
"""What runs in the VMs of real VMMs: a bare-metal program, and a small Linux."""
