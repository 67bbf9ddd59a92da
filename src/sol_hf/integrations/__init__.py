# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters to other libraries, lm-evaluation-harness and evaluate, and a small language model that needs no Hub.

The adapters only translate arguments and results. The code that they call is in other wings.
"""
