# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny random models of every causal-LM family of the installed transformers that can be built from a config.

The tables here only make configs small and consistent. Nothing else in the package knows families by their names.
"""

from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


FAMILY_NAMES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

DECODER: dict[str, Any] = dict(
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
OTHER_NAMES = dict(
    ffn_dim=64,
    ffn_hidden_size=64,
    d_ff=64,
    d_kv=8,
    decoder_layers=2,
    decoder_ffn_dim=64,
    decoder_attention_heads=4,
    encoder_layers=2,
    encoder_ffn_dim=64,
    encoder_attention_heads=4,
    shared_intermediate_size=64,
)
EXPERTS = dict(
    num_local_experts=4,
    num_experts=4,
    n_routed_experts=4,
    moe_num_experts=4,
    num_experts_per_tok=2,
    n_group=1,
    topk_group=1,
    moe_intermediate_size=16,
    moe_ffn_hidden_size=16,
    expert_ffn_hidden_size=16,
    shared_expert_intermediate_size=16,
    moe_shared_expert_intermediate_size=16,
    n_shared_experts=1,
    decoder_sparse_step=1,
    first_k_dense_replace=1,
)
LATENT = dict(q_lora_rank=16, kv_lora_rank=16, qk_nope_head_dim=8, qk_rope_head_dim=8)
INDEXED = dict(index_n_heads=2, index_head_dim=16, index_topk=12)
RECURRENT = dict(
    linear_num_key_heads=2,
    linear_num_value_heads=2,
    linear_key_head_dim=8,
    linear_value_head_dim=8,
    mamba_n_heads=4,
    mamba_d_head=16,
    mamba_d_state=8,
    mamba_expand=2,
    mamba_num_heads=4,
    mamba_head_dim=16,
    ssm_state_size=8,
    n_groups=1,
    chunk_size=8,
)
PER_LAYER = dict(
    gated_norm_rank=2,
    hidden_size_per_layer_input=8,
    vocab_size_per_layer_input=99,
    laurel_rank=8,
    num_kv_shared_layers=0,
)
SIZES: dict[str, Any] = {**DECODER, **OTHER_NAMES, **EXPERTS, **LATENT, **INDEXED, **RECURRENT, **PER_LAYER}

VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
)
"""As many layers as the text part, so that the two can be mistaken for each other."""
QWEN_VISION = dict(
    depth=2, hidden_size=16, intermediate_size=32, num_heads=2, out_hidden_size=32, num_position_embeddings=16
)
IN_THREE_DIMENSIONS = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
FULL = ["full_attention"] * 2
SLIDING = ["sliding_attention", "full_attention"]
LINEAR = ["linear_attention", "full_attention"]
SHARED = dict(num_hidden_layers=6, num_kv_shared_layers=4, layer_types=SLIDING * 3, sliding_window=16)


def text(family: str, **overrides: Any) -> dict[str, Any]:
    """The config of a text part, for composite models."""
    return {**SIZES, **OVERRIDES.get(family, {}), **overrides, "model_type": family}


NO_GROUPS = {"num_key_value_heads": 4}
DECODING = {"is_decoder": True}
PADDED = {"pad_token_id": 0, **DECODING}
HYBRID = {"layer_types": LINEAR}
MULTI_LATENT = (
    "axk1 axk2 deepseek_v2 deepseek_v3 deepseek_v32 glm_moe_dsa glm4_moe_lite longcat_flash minicpm3 youtu dots3_note "
    "dots3_note_text kimi_linear"
).split()
BERTS = "bert bert-generation electra ernie roc_bert".split()
WITH_PADDING = "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl".split()
LINEAR_AND_FULL = (
    "bailing_hybrid granitemoehybrid qwen3_next qwen3_5_text qwen3_5_moe_text qwen4_exp_text lfm3"
).split()
OVERRIDES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(MULTI_LATENT, NO_GROUPS),
    **dict.fromkeys(WITH_PADDING, PADDED),
    **dict.fromkeys(LINEAR_AND_FULL, HYBRID),
    **dict.fromkeys(BERTS, DECODING),
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "ctrl": {"n_embd": 32, "n_layer": 2, "n_head": 4, "dff": 64, "n_positions": 256},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3_text": {"layer_types": SLIDING, "sliding_window": 16},
    "gemma3n_text": {**SHARED, "intermediate_size": [64] * 6, "activation_sparsity_pattern": [0.0] * 6},
    "gemma4_text": {**SHARED, **PADDED},
    "gemma4_unified_text": {**SHARED, **PADDED},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2, "window_size": 16},
    "gptj": {"rotary_dim": 4},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": {**NO_GROUPS, **HYBRID, "linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"expand": 2, "num_heads": 8, "head_dim": 8, "state_size": 8},
    "modernbert-decoder": {"pad_token_id": 0, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 64, "lru_width": 32},
    "reformer": {
        "is_decoder": True, "axial_pos_shape": (16, 16), "axial_pos_embds_dim": (16, 16), "attn_layers": ["local"] * 2,
    },
    "roc_bert": {**DECODING, "pronunciation_vocab_size": 99, "shape_vocab_size": 99},
    "xlnet": {"d_model": 32, "n_head": 4, "d_head": 8, "n_layer": 2, "d_inner": 64},
    "xlstm": {"num_heads": 4, "num_blocks": 2},
    "xmod": {**PADDED, "default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {"layer_types": ["linear_attention", "hybrid"], "attn_layer_period": 2, "attn_layer_offset": 1},
    "zaya": {"num_experts_per_tok": 1},
    "cpmant": {"dim_model": 32, "num_attention_heads": 4, "dim_head": 8, "dim_ff": 64},
}  # fmt: skip
BLT = {k: v for k, v in DECODER.items() if k != "head_dim"} | {"hidden_size_global": 32, "cross_attn_k": 1}
OVERRIDES |= {
    "emu3": {"text_config": text("emu3_text_model", pad_token_id=0)},
    "blt": {
        "encoder_hash_byte_group_vocab": 99,
        **{f"{part}_config": BLT for part in ("patcher", "encoder", "decoder", "global")},
    },
    "gemma3": {"text_config": text("gemma3_text"), "vision_config": VISION | {"model_type": "siglip_vision_model"}},
    "gemma4": {"text_config": text("gemma4_text")},
    "gemma4_unified": {"text_config": text("gemma4_unified_text")},
    "git": {"vision_config": VISION},
    "got_ocr2": {
        "text_config": text("qwen2"),
        "vision_config": VISION | {"mlp_dim": 32, "output_channels": 8, "global_attn_indexes": [1], "window_size": 2},
    },
    "llama4": {"text_config": text("llama4_text"), "vision_config": VISION},
    "mllama": {"text_config": text("mllama_text_model", cross_attention_layers=[1]), "vision_config": VISION},
    "moss_transcribe_diarize": {
        "text_config": text("qwen3"),
        "audio_config": dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2),
    },
    "phi4_multimodal": {
        "vision_config": VISION | {"image_size": 16, "crop_size": 16},
        "audio_config": dict(
            hidden_size=16,
            intermediate_size=32,
            num_blocks=1,
            num_attention_heads=2,
            ext_pw_out_channel=16,
            depthwise_separable_out_channel=16,
            nemo_conv_channels=16,
        ),
    },
    "qwen3_5": {"text_config": text("qwen3_5_text", layer_types=LINEAR), "vision_config": QWEN_VISION},
    "qwen3_5_moe": {"text_config": text("qwen3_5_moe_text", layer_types=LINEAR), "vision_config": QWEN_VISION},
    "qwen4_exp": {"text_config": text("qwen4_exp_text"), "vision_config": QWEN_VISION},
}

COMPOSITES: dict[str, dict[str, Any]] = {
    "llava": {"text_config": text("llama"), "vision_config": VISION | {"model_type": "clip_vision_model"}},
    "internvl": {
        "text_config": text("qwen2"),
        "vision_config": VISION | {"model_type": "internvl_vision", "image_size": [8, 8], "patch_size": [4, 4]},
    },
    "idefics3": {"text_config": text("llama"), "vision_config": VISION},
    "mistral3": {"text_config": text("mistral"), "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8}},
    "paligemma": {
        "text_config": text("gemma", use_bidirectional_attention=False),  # text alone, as if it were generated
        "vision_config": VISION | {"model_type": "siglip_vision_model"},
    },
    "qwen2_vl": {
        "text_config": text("qwen2_vl_text", rope_parameters=IN_THREE_DIMENSIONS),
        "vision_config": QWEN_VISION | {"embed_dim": 16},
    },
    "qwen3_vl": {
        "text_config": text("qwen3_vl_text"),
        "vision_config": QWEN_VISION | {"deepstack_visual_indexes": [0]},
    },
}
"""Bases with towers whose class is not one of the causal LMs of transformers' Auto classes."""
UNSETTABLE = {
    "prophetnet": ("num_hidden_layers",),
    "xlnet": ("max_position_embeddings",),
    "dots3_note": ("hidden_size",),
    "kimi_linear": ("head_dim",),
}


def sizes_of(family: str) -> dict[str, Any]:
    """The sizes that a family's config accepts; some names are read-only there."""
    kind = CONFIG_MAPPING[family]
    members = {name: getattr(kind, name, None) for name in SIZES}
    fixed = {name for name, member in members.items() if isinstance(member, property) and member.fset is None}
    return {name: SIZES[name] for name in SIZES if name not in fixed and name not in UNSETTABLE.get(family, ())}


def family_base(family: str, **overrides: Any) -> PreTrainedModel:
    """A tiny random model of a family, with weights large enough to matter."""
    sizes = {**sizes_of(family), **OVERRIDES.get(family, {}), **COMPOSITES.get(family, {}), **overrides}
    kind = AutoModelForImageTextToText if family in COMPOSITES else AutoModelForCausalLM
    torch.manual_seed(7)
    base = kind.from_config(AutoConfig.for_model(family, **sizes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.mul_(0.25 / parameter.std().clamp(min=1e-6))
    base.generation_config.pad_token_id = 0
    base.generation_config.eos_token_id = None
    return base


def in_float64(base: PreTrainedModel) -> PreTrainedModel:
    """A base in float64, for which torch has no grouped products: its experts run one by one."""
    for module in base.modules():
        if hasattr(vars(module).get("config"), "_experts_implementation"):
            vars(module)["config"]._experts_implementation = "eager"
    return base.double()
