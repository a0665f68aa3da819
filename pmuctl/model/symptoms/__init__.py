# SPDX-License-Identifier: Apache-2.0
"""Symptoms of PMU trouble: what VMMs and guests print, what is behind it, and what fixes it."""
