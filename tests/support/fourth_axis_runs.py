# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The fourth axis of `extra_axis` with an executor, so that models run under it."""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from sol_hf import SOLForCausalLM
from sol_hf.cache.sol_cache import SOLCache
from sol_hf.execution.executors import EXECUTORS, AxisExecutor, Change
from sol_hf.execution.plan import ACTIVE
from support.bases import tiny_base
from support.cases import control
from support.extra_axis import FOUR_LEVELS, MLP_NOISE, registered


NAMES = tuple(FOUR_LEVELS)


class LogitScale(AxisExecutor):
    """Multiplies the logits of a row by its level: lower levels change what the model predicts."""

    def __init__(self, base: PreTrainedModel):
        self.head = base.get_output_embeddings()

    def changes(self) -> Iterable[Change]:
        def scale(module, inputs, output):
            plan = context.plan if (context := ACTIVE.get()) is not None else None
            level = plan.levels.get(MLP_NOISE.name) if plan is not None else None
            if plan is None or level is None:
                return output
            plan.mark_done(MLP_NOISE.name, "head")
            return output * level.to(output.dtype)[:, None, None]

        return [Change("logit scale", self.head, lambda: self.head.register_forward_hook(scale).remove)]

    def parts(self, cache: SOLCache) -> Mapping[Hashable, str]:
        return {"head": "the LM head"}

    def layers(self, cache: SOLCache) -> Sequence[int]:
        return ()


@contextmanager
def fourth_axis() -> Iterator[None]:
    """The axis `mlp_noise` is registered and can be run within the block."""
    with registered():
        EXECUTORS.register(MLP_NOISE.name, LogitScale)
        try:
            yield
        finally:
            EXECUTORS.unregister(MLP_NOISE.name)


def four_axis_model(family: str = "llama", **settings) -> SOLForCausalLM:
    """A small policy over four axes on a tiny base, in float64; call it within `fourth_axis`."""
    return control(tiny_base(family, torch.float64), **FOUR_LEVELS, **settings)
