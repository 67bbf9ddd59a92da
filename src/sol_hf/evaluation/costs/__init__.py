# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the levels of an axis save of a step: one file per axis.

Each file registers itself in `AXIS_COSTS`. Nothing here runs a model.
"""
