# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One step, episodes, KV refresh, options, outputs and scoring: how a text is decoded under a budget.

All that has to be remembered is in the cache or in the session. No decode loop for text: that is transformers'.
"""
