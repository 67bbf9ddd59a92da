# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The code in a policy's repository, which runs it where this package is not installed.

It is one file, written from the modules of this package. What needs compilers stays out of it.
"""
