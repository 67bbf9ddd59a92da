# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Executors, one per file: what an axis changes on a base while a generation runs, and which parts carry it out.

An executor lists these parts. Their computations are in `execution/attention` and `execution/mlp`.
"""
