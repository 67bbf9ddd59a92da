# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny random base models of every supported family, built in code."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


SIZES = dict(
    vocab_size=99,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    pad_token_id=None,
    bos_token_id=1,
    eos_token_id=None,
    tie_word_embeddings=False,
)
NO_GROUPS = {"num_key_value_heads": 4}
FAMILIES: dict[str, dict] = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 24},
    "gemma": {},
    "gemma3_text": {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]},
    "phi3": {},
    "gpt_neox": NO_GROUPS,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "n_inner": 64},
    "olmo2": {},
    "smollm3": {"no_rope_layer_interval": 2},
    "cohere": {"logit_scale": 0.5},
}


def tiny_base(family: str, dtype: torch.dtype = torch.float32, **overrides) -> PreTrainedModel:
    """A random model of a family with two layers of width 32 and weights large enough to make choices matter."""
    sizes = {
        k: v for k, v in SIZES.items() if family != "gpt2" or not k.startswith(("hidden", "num_", "head", "inter"))
    }
    config = AutoConfig.for_model(family, **{**sizes, **FAMILIES.get(family, {}), **overrides})
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.25 / parameter.float().std().clamp(min=1e-6))
    model.generation_config.pad_token_id = 0
    return model
