# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Prints what the first calls after a warmup import, compile and copy.

python tests/support/after_warmup.py
"""

import json
import sys

import torch

from sol_hf import FixedController
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.stack import stack
from support import repeat_texts


def kernels() -> set[str]:
    """Modules of compiled code, and of the compiler, that are loaded."""
    return {name for name in sys.modules if name.startswith("sol_hf.") or name.split(".")[0] in ("numba", "llvmlite")}


def copies(model) -> set[int]:
    """The copies of weights that were made, by their ids."""
    parts = Instrumentation.of(model.base).step_parts
    return {id(copy) for part in parts for copy in part.copies}


def main() -> None:
    """Warms a model up, and makes texts of several kinds."""
    model = repeat_texts.build()
    model.warmup()
    from numba.core import event

    loaded, made = kernels(), copies(model)
    recognised, find = [], stack.find_stack
    stack.find_stack = lambda base: recognised.append(base) or find(base)
    with event.install_recorder("numba:compile") as recorder:
        for rows, length, call in (
            (1, 40, dict(token_keep=0.4, mlp_keep=0.5, bits=10)),
            (3, 40, dict(token_keep=0.4, mlp_keep=0.5, bits=10)),
            (1, 530, dict(token_keep=0.4)),
            (1, 40, dict(backend="fast")),
        ):
            controller = None if "backend" in call else FixedController()
            model.generate(
                torch.full((rows, length), 7), max_new_tokens=18, do_sample=False, controller=controller, **call
            )
    found = dict(
        imported=sorted(kernels() - loaded),
        compiled=len(recorder.buffer),
        copied=sorted(copies(model) - made),
        has_copies=bool(made),
        recognised=len(recognised),
        has_kernels="sol_hf.kernels.cpu.numba_linear" in loaded,
    )
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
