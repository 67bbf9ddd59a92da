# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Compares steps that run as one program with those that run by the modules of the base."""

import torch

from sol_hf import FixedController, SOLConfig, SOLForCausalLM


SPACE = dict(token_keep=[0.3, 1.0], mlp_keep=[0.4, 1.0], neuron_keep=[0.5, 1.0], bits=[5, 8, 16])
WIDE = dict(hidden_size=64, intermediate_size=128, head_dim=16)
"""Sizes whose channels are whole groups of nested planes."""
CALL = dict(max_new_tokens=10, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0)
CLOSE = {torch.float32: 2e-4, torch.bfloat16: 0.25}


def model_of(base, **options) -> SOLForCausalLM:
    torch.manual_seed(3)
    return SOLForCausalLM.from_base(base, SOLConfig(**{**SPACE, "episode_length": 6, "page_size": 4, **options}))


def logits_of(model, backend, **options) -> torch.Tensor:
    controlled = {"controller": FixedController()} if set(SPACE) & set(options) else {}
    call = {**CALL, **controlled, **options}
    output = model.generate(backend=backend, **call)
    return torch.stack(output.logits, dim=1).float()


def assert_same(model, dtype=torch.float32, **options) -> None:
    """A text by programs has the logits of one by modules, up to rounding."""
    by_modules, by_programs = (logits_of(model, backend, **options) for backend in ("reference", "fast"))
    assert by_modules.shape == by_programs.shape
    scale = by_modules.abs().amax().clamp(min=1)
    assert float((by_modules - by_programs).abs().amax() / scale) < CLOSE[dtype]
