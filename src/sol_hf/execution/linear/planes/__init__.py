# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The product with weights that are read in fewer bits: one implementation per file.

Compiled code is in `kernels`; how one is chosen is in `dispatch.py`.
"""
