# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Files of policies and results: where they are, which of their values are read, limits, locks, and hashes.

No module here knows what a value is used for, and none runs code from a repository.
"""
