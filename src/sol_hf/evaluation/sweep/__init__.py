# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Sweeps: many controllers at many budgets on the same text; an interrupted sweep can be continued.

Results are tables. Figures of them are made in `figures`.
"""
