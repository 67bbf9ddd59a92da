# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The state of a generation: keys, values, page index, the running episode and the ledger.

State only, without controller, options or CUDA graphs. It can be copied and pickled.
"""
