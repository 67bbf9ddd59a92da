# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Budgets: axes, actions, targets, the ledger of compute spent, and calibration tables.

Numbers and small tensors only, without a model, a cache or a controller.
"""
