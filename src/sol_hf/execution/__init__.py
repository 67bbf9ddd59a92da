# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What the modules of a base do in a decode step: the plan, and the parts that carry it out.

Nothing here chooses an action. A part reads the plan of its own forward and marks it as done.
"""
