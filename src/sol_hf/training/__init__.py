# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Training of policies: TRL's GRPO on teacher-forced episodes, and a supervised start from measured costs.

The base is never changed. No other wing imports TRL.
"""
