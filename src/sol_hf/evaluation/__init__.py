# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What a policy is worth: against baselines and an oracle, in quality and in counted compute.

Tables of numbers come out. Pictures are in `figures`.
"""
