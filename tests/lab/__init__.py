# SPDX-License-Identifier: Apache-2.0
"""The lab: a real arm64 KVM host with several PMUs, under QEMU's TCG, on any machine."""
