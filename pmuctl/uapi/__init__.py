# SPDX-License-Identifier: Apache-2.0
"""The kernel's own names and layouts, one module for each of its headers, and nothing else."""
