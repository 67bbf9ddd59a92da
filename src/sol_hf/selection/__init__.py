# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Which keys, channels and levels of precision a step uses, as pure functions of tensors.

Criteria are objects, one per file in `criteria`. Nothing here knows a cache, a plan or a model.
"""
