# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compiled code on raw tensors, one folder per kind of device. For every kernel there is a reference in plain torch.

Kernels do not depend on a cache layer, a plan or a model.
"""
