# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Many controllers at many budgets on the same text, in a table that survives a stop.

Nothing here draws; nothing here trains.
"""
