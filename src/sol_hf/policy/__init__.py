# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Parts of the policy network that depend on the levels of the axes.

Plain modules. The network itself is `modeling_sol_policy.py`.
"""
