# SPDX-License-Identifier: Apache-2.0
"""VMMs as their command lines and thread names show them."""
