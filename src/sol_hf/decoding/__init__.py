# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decoding under a budget: decode steps, episodes, KV refresh, options, outputs and scoring.

All state is in the cache or in the session. The generation loop is that of transformers.
"""
