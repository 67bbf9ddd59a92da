# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Policies as files: loading, saving, model cards.

Nothing here imports the model class; what is saved comes in as an argument.
"""
