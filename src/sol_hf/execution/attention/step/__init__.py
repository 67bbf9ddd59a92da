# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Attention of a decode step: one implementation per file, registered in `operation.py`.

Criteria are in `selection`, compiled code is in `kernels`; how one is chosen is in `dispatch.py`.
"""
