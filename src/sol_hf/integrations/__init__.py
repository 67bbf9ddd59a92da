# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Where other libraries find us: lm-evaluation-harness, evaluate, and a small real model without the Hub.

Thin adapters; what they call is elsewhere.
"""
