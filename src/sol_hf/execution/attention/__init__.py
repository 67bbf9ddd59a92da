# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The attention of a base in decode steps (`step`), in KV refreshes (`refresh`) and in rollouts (`shared_prefix.py`).

transformers calls the functions in `interface.py`. Criteria are in `selection`, compiled code is in `kernels`.
"""
