# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton kernels, and the torch side of each; Triton is imported when the first one runs.

Only tensors and numbers come in; what is not supported is for the caller to ask first.
"""
