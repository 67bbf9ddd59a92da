# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Computes decode steps of a base: the plan of a step, and the parts of the base that carry it out.

Actions are chosen elsewhere. A part reads the plan of the running forward and marks its share of it as done.
"""
