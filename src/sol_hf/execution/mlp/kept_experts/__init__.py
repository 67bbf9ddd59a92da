# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Experts over the largest channels of their input: one implementation per file, registered in `operation.py`.

How one is chosen is in `dispatch.py`.
"""
