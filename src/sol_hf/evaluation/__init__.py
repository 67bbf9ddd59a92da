# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of a policy, of baselines and of an oracle: quality, and compute.

The results are tables of numbers. Figures are made in `figures`.
"""
