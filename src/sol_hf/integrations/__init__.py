# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters to lm-evaluation-harness, evaluate and transformers' `custom_generate`, and a small model without the Hub.

The adapters only translate arguments and results. The code that they call is in other wings.
"""
