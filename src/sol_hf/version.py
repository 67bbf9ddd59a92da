# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The version of the package, written into every saved config."""

__version__ = "0.1.0.dev0"
