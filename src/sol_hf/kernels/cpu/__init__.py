# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""CPU kernels, compiled by numba if it is installed, each with a function that calls it with torch tensors.

Arguments are tensors and numbers only. Callers first check whether they are supported.
"""
