# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Selection of keys and channels, and quantization, as pure functions of tensors.

Criteria are objects, one per file in `criteria`. No module here depends on a cache, a plan or a model.
"""
