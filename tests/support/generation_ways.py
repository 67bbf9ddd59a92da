# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A tiny model in the three ways in which transformers' generation cases are run."""

import functools
from typing import Any

import torch

from sol_hf import SOLForCausalLM
from support.bases import tiny_base
from support.cases import control


NEW, LENGTH = 4, 20
ARGUMENTS: dict[str, dict[str, Any]] = {"no budget": {}, "fast": {"backend": "fast"}, "stored": {}}
STORED = {"token_keep": 0.5, "mlp_keep": 0.7, "bits": 8, "bits_backend": "nested"}
BASES: dict[str, dict] = {"llama": {}, "mistral": {"sliding_window": 12}}
RUN = {"max_new_tokens": NEW, "do_sample": False}
DICT = {"return_dict_in_generate": True, "output_scores": True}


@functools.cache
def model_of(way: str, family: str = "llama", dtype: torch.dtype = torch.float32, **config) -> SOLForCausalLM:
    """A tiny base under a fresh policy, as a way of the file's docstring has it."""
    model = control(tiny_base(family, dtype, **BASES[family], **config))
    if way == "stored":
        for name, value in STORED.items():
            setattr(model.generation_config, name, value)
    return model


def run(way: str, *inputs, family: str = "llama", model: SOLForCausalLM | None = None, **arguments):
    """`generate` in a way, from the same seed."""
    model = model or model_of(way, family)  # before the seed: a new model draws its weights
    torch.manual_seed(5)
    return model.generate(*inputs, **arguments, **ARGUMENTS[way])


def run_base(*inputs, family: str = "llama", **arguments):
    base = model_of("no budget", family).base
    torch.manual_seed(5)
    return base.generate(*inputs, **arguments)


def assert_like(way: str, output, other) -> None:
    """Two dict outputs are the same bit for bit without a budget, and up to rounding in other ways."""
    exact = {"atol": 0.0, "rtol": 0.0} if way == "no budget" else {"atol": 1e-4, "rtol": 1e-3}
    assert torch.equal(output.sequences, other.sequences)
    for name in ("scores", "logits", "hidden_states", "attentions"):
        for ours, theirs in zip(getattr(output, name) or (), getattr(other, name) or (), strict=True):
            torch.testing.assert_close(ours, theirs, **exact)
