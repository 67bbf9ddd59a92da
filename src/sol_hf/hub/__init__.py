# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Policies as files: loading, saving, model cards.

No module here imports the model class: the model to save is an argument.
"""
