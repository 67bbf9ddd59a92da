# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The command `sol-hf`.

Arguments, messages and exit codes only. The commands themselves are implemented in other wings.
"""
