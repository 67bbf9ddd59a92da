# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a budget is: axes, actions, targets, the ledger of what was spent, and calibration tables.

Numbers and small tensors only. Nothing here knows a model, a cache or a controller.
"""
