# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Figures and HTML pages of tables and texts.

Measurements are made in `evaluation`.
"""
