# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What stands in the code of a repository in place of modules that stay out of it.

A stand-in says that its part is not available; it imports nothing from this package.
"""
