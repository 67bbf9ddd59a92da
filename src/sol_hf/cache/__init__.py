# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The state of a generation: keys, values, page index, the running episode and the ledger.

State only: no controller, no options, no graphs. What is here can be copied and pickled.
"""
