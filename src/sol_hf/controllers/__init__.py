# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers, which score the actions of a step, and processors, which edit these scores.

Every controller has a file of its own. None of them runs the base.
"""
