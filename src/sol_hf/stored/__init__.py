# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Files of a policy: where they are, which values of them are read, and limits, checked before anything is allocated.

No module here knows what a value is used for, and none runs code from a repository.
"""
