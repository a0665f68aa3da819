# SPDX-License-Identifier: Apache-2.0
"""pmuctl run: a VMM executed in place, and the supervisor that acts in its vCPUs' window."""
