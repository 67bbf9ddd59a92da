# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Known text under many schedules: blocks, rollouts, and the measured costs of levels.

Evaluation and training use it. It imports neither.
"""
