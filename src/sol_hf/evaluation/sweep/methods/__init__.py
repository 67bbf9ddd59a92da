# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sweep methods, one file per method.

Each file registers its class in `SWEEP_METHODS`; `step_by_step` is for all controllers without a method of their own.
"""
