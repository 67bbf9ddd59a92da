# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Triton kernels, each with a function that calls it with torch tensors; Triton is imported by the first call.

Arguments are tensors and numbers only. Callers first check whether they are supported.
"""
