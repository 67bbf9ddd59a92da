# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Names of bases that need no model hub, for command lines."""

from .gemma3 import BASE as GEMMA3_BASE
from .gemma3 import GEMMA3
from .smollm2 import BASE as SMOLLM2_BASE
from .smollm2 import SMOLLM2


PACKAGED_BASES = {SMOLLM2: SMOLLM2_BASE, GEMMA3: GEMMA3_BASE}
"""Bases in Python packages, by the name that command lines give them."""

NEED_NO_HUB = f"{' or '.join(PACKAGED_BASES)}, which need no Hub"
"""For the help of an option that takes a base."""


def base_source(name: str) -> str:
    """Folder of a packaged base, which is fetched at its first use; any other name as it is.

    Raises:
        ModelUnavailableError: If the base is packaged, is not in the cache, and cannot be made.
    """
    return str(PACKAGED_BASES[name].fetch()) if name in PACKAGED_BASES else name
