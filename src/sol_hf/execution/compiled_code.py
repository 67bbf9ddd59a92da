# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Loads the compiled code of the fast paths before it is needed."""

from pathlib import Path

from ..kernels.cpu import compilation


def load_kernels() -> bool:
    """Import all modules that numba compiles, so that no call has to; `False` without numba."""
    folder = Path(compilation.__file__).parent
    return all([compilation.loads(file.stem) for file in sorted(folder.glob("numba_*.py"))])
