# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Adapters to other libraries: lm-evaluation-harness and evaluate; and a small real model that needs no Hub.

The adapters are thin. The code that they call belongs to other wings.
"""
