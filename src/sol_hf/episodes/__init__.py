# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Episodes on known text under many schedules: blocks, rollouts, and measured costs of levels.

This wing is used by evaluation and training, and imports neither.
"""
