# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bytes and operations of decode steps, counted from the sizes of a base: for outputs, evaluations and servers.

Nothing is timed. One token is run once per base, to see the shapes of its cache.
"""
