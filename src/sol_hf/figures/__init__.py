# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Pictures and pages made from tables and texts.

Nothing here measures or decides.
"""
