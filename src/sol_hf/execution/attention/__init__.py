# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axis `token_keep`: attention over selected keys, and the faster ways to compute it.

A way is a file. Criteria are in `selection`, compiled code is in `kernels`.
"""
