# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Known text under many schedules: blocks, rollouts, and the measured cost of cheap steps.

Shared by evaluation and training, and knows neither.
"""
