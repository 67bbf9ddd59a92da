# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers, which score the actions of a step, and processors, which edit these scores.

There is one file per controller. No controller runs the base.
"""
