# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`python -m sol_hf.cli`, the same as `sol-hf`; `accelerate launch -m` needs a module."""

import sys

from .main import main


sys.exit(main())
