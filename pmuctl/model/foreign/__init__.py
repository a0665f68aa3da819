# SPDX-License-Identifier: Apache-2.0
"""Words of other tools, in the notation of pmuctl."""
