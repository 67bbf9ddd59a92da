# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The MLPs of a base in a decode step, for the axes `mlp_keep` and `bits`: how they are found and computed.

Copies of weights are made and held here. Compiled code is in `kernels`.
"""
