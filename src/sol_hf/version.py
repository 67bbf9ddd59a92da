# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The version of the package, written into every saved config, and the versions of transformers that it works with."""

__version__ = "0.1.0.dev0"
TRANSFORMERS = ("5.18", "5.24")
"""The first version of transformers that works, and the first that does not: the range in setup.cfg."""
