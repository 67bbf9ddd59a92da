# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One executor a file: what an axis changes on a base while a generation runs, and which parts carry it out.

An executor says which parts there are; how they compute is in `execution/attention` and `execution/mlp`.
"""
