# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Ways in which a sweep runs an entry: one file per method.

Each file registers itself in `SWEEP_METHODS`; `step_by_step` is for every controller without a method of its own.
"""
