# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""CPU kernels, compiled by numba where it is installed, each with its call from torch.

Arguments are tensors and numbers only. The caller asks first whether they are supported.
"""
