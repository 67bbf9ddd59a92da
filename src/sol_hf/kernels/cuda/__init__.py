# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton kernels, each with its call from torch; Triton is imported when the first one runs.

Arguments are tensors and numbers only. The caller asks first whether they are supported.
"""
