# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The reduction of a step's counts by the levels of an axis: one file per axis.

Each file registers its class in `AXIS_COSTS`. No step is run; the base is only asked for the shapes of its cache.
"""
