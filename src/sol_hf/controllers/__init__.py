# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What chooses an action for every step, and what may overrule it: one controller a file.

A controller sees an observation and gives scores. It never runs the base.
"""
