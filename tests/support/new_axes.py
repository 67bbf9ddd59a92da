# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy over four axes, with the recommended criterion, whose stored options say that steps read planes."""

import torch

from sol_hf import SOLForCausalLM
from support.bases import tiny_base
from support.cases import control


FOUR: dict = {
    "token_keep": [0.2, 0.6, 1.0],
    "mlp_keep": [0.5, 1.0],
    "bits": [3, 5, 7, 9, 16],
    "neuron_keep": [0.4, 1.0],
    "criterion": "sketch",
    "selection": "layer",
}
READ = {3: 4, 5: 5, 7: 8, 9: 16, 16: 16}
"""In how many bits a level is read."""


def nested_model(dtype: torch.dtype = torch.float32, **settings) -> SOLForCausalLM:
    """The model, on a tiny Llama."""
    model = control(tiny_base("llama", dtype), **{**FOUR, **settings})
    model.policy.float()
    model.generation_config.bits_backend = "nested"
    return model
