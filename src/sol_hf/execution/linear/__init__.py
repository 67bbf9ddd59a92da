# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The linear layers of a decode step on the CPU: one implementation of their product per file.

Compiled code is in `kernels`; how one is chosen is in `dispatch.py`.
"""
