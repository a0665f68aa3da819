# SPDX-License-Identifier: Apache-2.0
"""The engine of pmuctl run, on this machine where it has KVM."""
