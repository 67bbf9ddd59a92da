# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""CPU kernels, compiled by numba where it is installed, and the torch side of each.

Only tensors and numbers come in; what is not supported is for the caller to ask first.
"""
