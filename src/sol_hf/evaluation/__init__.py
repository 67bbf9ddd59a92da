# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Evaluation of a policy against baselines and an oracle: quality, and counted compute.

The results are tables of numbers. Pictures are in `figures`.
"""
