# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One criterion per file, each registered under its name with `register_criterion`.

A file in this folder is found by itself. No other module compares the names of criteria.
"""
