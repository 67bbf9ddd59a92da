# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""CUDA graphs need the kernels, which are not in this file."""

from typing import Any, NoReturn


class CapturedForward:
    """A forward that runs from a CUDA graph."""

    def __init__(self, *args: Any):
        _refuse()


def check_capture(base: Any, cache: Any, rule: Any) -> None:
    """Raise a ValueError: nothing can be captured."""
    _refuse()


def _refuse() -> NoReturn:
    raise ValueError(
        "`cuda_graphs` needs kernels that are not in the code of a policy's repository: pip install 'sol_hf[cuda]', "
        "or leave it out."
    )
