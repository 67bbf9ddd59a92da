# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checks whether the attention of a base can be replaced."""

from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from ...errors import UnsupportedAxisError


def check_attention(base: PreTrainedModel) -> None:
    """Raise [`UnsupportedAxisError`] if the attention of `base` cannot be reached through AttentionInterface."""
    config = base.config.get_text_config(decoder=True)
    if not base._supports_attention_backend:
        raise UnsupportedAxisError(
            f"The axis `token_keep` cannot be controlled on {type(base).__name__}: its attention does not go through "
            "transformers' AttentionInterface."
        )
    softcap = getattr(config, "attn_logit_softcapping", None)
    if softcap is not None:
        raise UnsupportedAxisError(
            f"The axis `token_keep` cannot be controlled on {type(base).__name__}: its attention soft-caps the scores "
            f"(softcap={softcap:g}), which attention over selected keys does not support."
        )
    if any(name.rpartition(".")[2] == "sinks" for name, _ in base.named_parameters()):
        raise UnsupportedAxisError(
            f"The axis `token_keep` cannot be controlled on {type(base).__name__}: its attention has learned sinks, "
            "which attention over selected keys does not support."
        )
    if config._attn_implementation not in ALL_MASK_ATTENTION_FUNCTIONS:
        raise UnsupportedAxisError(
            f"The axis `token_keep` cannot be controlled on {type(base).__name__} with the attention implementation "
            f"{config._attn_implementation!r}: load the base with attn_implementation='sdpa' or 'eager'."
        )
