# SPDX-License-Identifier: Apache-2.0
"""Words of other tools, and near misses of pmuctl's own: refused, with what to type instead."""
