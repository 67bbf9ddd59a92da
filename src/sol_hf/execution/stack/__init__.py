# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A decode step on the CPU as one program of compiled operations: bases are recognised, programs assembled and run.

Compiled code is in `kernels`. What is not recognised runs by the modules of the base.
"""
