# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`generate(lossless=True)`: tokens are drafted under a budget, and a dense forward over them checks them.

All logits that leave the model are dense; what is done with them, transformers' loop decides.
"""
