# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The axes `mlp_keep` and `bits`: where the MLPs of a base are, and what they compute in a step.

Copies of weights live here. Compiled code is in `kernels`.
"""
