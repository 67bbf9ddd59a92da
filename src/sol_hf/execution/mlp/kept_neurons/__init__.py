# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The last projection of an MLP over the largest neurons: one implementation per file, registered in `operation.py`.

Compiled code is in `kernels`; how one is chosen is in `dispatch.py`.
"""
