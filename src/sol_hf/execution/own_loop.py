# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Bases that generate by a loop of their own: it runs without a budget, and is refused under one."""

from collections.abc import Callable
from typing import Any

from transformers import GenerationConfig, GenerationMixin, PreTrainedModel


LOOPS = ("generate", "_sample", "_beam_search", "_assisted_decoding", "_prefill")


def has_own_loop(base: PreTrainedModel) -> bool:
    """Whether the class of a base replaces a loop of transformers' `generate`."""
    return any(_is_overridden(base, name) for name in LOOPS)


def _is_overridden(base: PreTrainedModel, name: str) -> bool:
    for kind in type(base).__mro__:
        if kind in GenerationMixin.__mro__:
            return False
        if name in vars(kind):
            return kind is not PreTrainedModel
    return False


def own_loop(base: PreTrainedModel, stored: GenerationConfig) -> Callable | None:
    """The `generate` of a base that has a loop of its own, with the model's stored settings; `None` for others."""
    if not has_own_loop(base):
        return None

    def generate(inputs: Any = None, generation_config: GenerationConfig | None = None, **arguments) -> Any:
        prompt = {} if inputs is None else {base.main_input_name: inputs}
        return base.generate(**prompt, generation_config=generation_config or stored, **arguments)

    return generate
