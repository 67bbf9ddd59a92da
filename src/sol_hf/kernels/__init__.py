# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiled code on raw tensors, one folder per kind of device, each kernel beside a plain reference.

Nothing here depends on a cache layer, a plan or a model.
"""
