# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny random vision-language bases that run with images, and prompts with an image in every row."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from sol_hf import SOLForCausalLM
from sol_hf.evaluation.families.tiny_configs import IN_THREE_DIMENSIONS, VISION, text

from .cases import control


IMAGE, BEGIN, END = 98, 96, 95
"""Ids of an image's tokens, and of those around it."""
QWEN = dict(depth=1, hidden_size=32, num_heads=2, patch_size=4, spatial_merge_size=2, temporal_patch_size=1)
TILES = dict(intermediate_layers_indices=[0], vision_output_dim=32, attention_heads=2, num_global_layers=1)
CONFIGS: dict[str, dict[str, Any]] = {
    "llava": {
        "text_config": text("llama"),
        "vision_config": VISION | {"model_type": "clip_vision_model", "projection_dim": 16},
        "vision_feature_layer": -1,
    },
    "qwen2_vl": {
        "text_config": text("qwen2_vl_text", rope_parameters=IN_THREE_DIMENSIONS),
        "vision_config": QWEN | {"embed_dim": 32, "mlp_ratio": 2},
        "vision_start_token_id": BEGIN,
        "vision_end_token_id": END,
        "video_token_id": 97,
    },
    "paligemma": {
        "text_config": text("gemma"),
        "vision_config": VISION | {"model_type": "siglip_vision_model", "projection_dim": 32},
        "projection_dim": 32,
    },
    "mllama": {
        "text_config": text("mllama_text_model", cross_attention_layers=[1]),
        "vision_config": VISION | TILES,
    },
}
LENGTH, CONTEXT = 20, 12


def vision_model(family: str) -> SOLForCausalLM:
    """A tiny base of a family under a policy, in float64."""
    torch.manual_seed(7)
    config = AutoConfig.for_model(family, **{"image_token_id": IMAGE, **CONFIGS[family]})
    base = AutoModelForImageTextToText.from_config(config, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    base.generation_config.pad_token_id = 0
    return control(base)


def with_images(family: str, rows: int = 2, generated: int = 0) -> dict[str, torch.Tensor]:
    """The arguments of a prompt of 20 tokens with an image of 4 in each row; the last `generated` are no prompt."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 90, (rows, LENGTH), generator=generator)
    ids[:, 4:8] = IMAGE
    types = (ids == IMAGE).long()
    arguments = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if family == "qwen2_vl":
        ids[:, 3], ids[:, 8] = BEGIN, END
        patches = torch.randn(rows * 16, 48, generator=generator, dtype=torch.float64)
        sizes = torch.tensor([[1, 4, 4]]).expand(rows, -1)
        return {**arguments, "mm_token_type_ids": types, "pixel_values": patches, "image_grid_thw": sizes}
    if family == "paligemma":
        arguments["token_type_ids"] = (torch.arange(LENGTH) >= LENGTH - generated).long().repeat(rows, 1)
    return {**arguments, "pixel_values": torch.randn(rows, 3, 8, 8, generator=generator, dtype=torch.float64)}
