# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One criterion per file, each registered under its name with `register_criterion`.

Files in this folder are imported automatically. No other module compares the names of criteria.
"""
