# SPDX-License-Identifier: Apache-2.0
"""The kernel's own names and layouts, module by module as in its headers, and nothing else."""
