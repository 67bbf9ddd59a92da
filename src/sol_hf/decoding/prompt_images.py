# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Images and sounds of a prompt: the tokens that stand for them, and prompts that cannot be cut before the last token.

A budget usually begins with the last token of a prompt. It begins one token later where that token stands for an
image, which the base computes with the others of the image, and where tokens before it see it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..execution.attention.masks import HIDDEN
from ..execution.decoder_layers import text_config
from .aligned_rows import AlignedRows
from .forward_inputs import PROMPT_ONLY, PROMPT_ONLY_BEGINNINGS


PLACEHOLDERS = ("image_token_i", "video_token_i", "audio_token_i")
"""Beginnings of the fields of a config with the ids of tokens in whose place images and sounds are put."""
SIZES = ("image_grid", "video_grid", "image_sizes", "video_second")
"""Beginnings of arguments that only describe images; a base may need those of all turns to count positions."""
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")


def is_image_input(name: str) -> bool:
    """Whether an argument of this name holds images or sounds, or describes them."""
    return name in PROMPT_ONLY or name.startswith(PROMPT_ONLY_BEGINNINGS)


def image_inputs(arguments: Mapping[str, Any]) -> list[str]:
    """Names of the arguments that hold images or sounds."""
    return [name for name, value in arguments.items() if is_image_input(name) and value is not None]


def image_tokens(base: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """A mask of the ids that stand for images and sounds, of the shape of `ids`; empty if the base has none."""
    fields = {
        name: getattr(base.config, name, None) for name in base.config.to_dict() if name.startswith(PLACEHOLDERS)
    }
    known = [value for value in fields.values() if isinstance(value, int)]
    if not known:
        return ids.new_zeros(0, dtype=torch.bool)
    return torch.isin(ids, torch.tensor(known, device=ids.device))


def inputs_to_score(
    base: PreTrainedModel, rows: AlignedRows, options: dict[str, Any], align: Callable[[torch.Tensor], torch.Tensor]
) -> dict[str, Any]:
    """Take the images of texts to score, and the types of their tokens, out of the options of `score`.

    Args:
        base (`PreTrainedModel`): The base.
        rows ([`AlignedRows`]): The texts.
        options (`dict[str, Any]`): All keyword arguments of the call; changed in place.
        align (`Callable`): Pads values of tokens, `(rows, length)`, as the texts are padded.

    Raises:
        ValueError: for images whose tokens are not all in the contexts, which are processed densely.
    """
    names = [name for name in options if is_image_input(name) or name in TOKEN_TYPES]
    taken = {name: options.pop(name) for name in names}
    ends = (rows.context + 1 + rows.steps)[:, None]
    filled = torch.arange(rows.tokens.shape[1], device=ends.device).minimum(ends - 1)  # the last type goes on
    given = {
        name: align(v).gather(1, filled) if name in TOKEN_TYPES else v for name, v in taken.items() if v is not None
    }
    if image_inputs(given) and bool((image_tokens(base, rows.tokens[:, rows.context :])).any() or rows.context == 0):
        raise ValueError(
            f"{', '.join(f'`{name}`' for name in image_inputs(given))}: images and sounds are processed with the "
            "context of a row, so all tokens that stand for them must be within its `context_length`."
        )
    if is_seen_before(base, rows.tokens, rows.attention_mask, given, rows.context):
        raise ValueError(
            f"{type(base).__name__} shows tokens of a prompt to those before them, so that a score would be that of "
            "tokens which are known: pass `token_type_ids` of shape (rows, length) that mark all tokens after the "
            "context as text that is generated, which is 1 for PaliGemma."
        )
    return given


def check_images(base: PreTrainedModel, prompt: torch.Tensor, arguments: Mapping[str, Any], cache: SOLCache) -> None:
    """Raise a ValueError for images whose tokens a cache holds already.

    Args:
        base (`PreTrainedModel`): The base.
        prompt (`torch.Tensor`): Ids `(rows, length)` of the whole text or of its new tokens, or embeddings.
        arguments (`Mapping[str, Any]`): Of the `generate` call.
        cache ([`SOLCache`]): From an earlier call, or an empty one.
    """
    names = [name for name in image_inputs(arguments) if not name.startswith(SIZES)]
    past, mask = cache.get_seq_length(), arguments.get("attention_mask")
    if not names or not past or prompt.is_floating_point():
        return
    is_whole = mask is None or mask.shape[1] == prompt.shape[1]
    marked = image_tokens(base, prompt[:, past:] if is_whole else prompt)
    if marked.numel() and not bool(marked.any()):
        given = ", ".join(f"`{name}`" for name in names)
        raise ValueError(
            f"The cache holds {past} tokens with their images and sounds, and no token after them stands for one: "
            f"leave out {given}, or pass those of new images only."
        )


def is_one_piece(base: PreTrainedModel, prompt: torch.Tensor, arguments: Mapping[str, Any]) -> bool:
    """Whether the last token of a prompt cannot be processed after those before it.

    Args:
        base (`PreTrainedModel`): The base.
        prompt (`torch.Tensor`): Ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`.
        arguments (`Mapping[str, Any]`): Of the `generate` call.
    """
    if prompt.dim() == 2 and image_inputs(arguments) and bool(image_tokens(base, prompt[:, -1:]).any()):
        return True
    return is_seen_before(base, prompt, arguments.get("attention_mask"), arguments, prompt.shape[1] - 1)


def is_seen_before(
    base: PreTrainedModel,
    tokens: torch.Tensor,
    attention_mask: torch.Tensor | None,
    arguments: Mapping[str, Any],
    begin: int,
) -> bool:
    """Whether a token from column `begin` on is seen by tokens before it, as those of a prompt are in some bases.

    Args:
        base (`PreTrainedModel`): The base.
        tokens (`torch.Tensor`): Ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`.
        attention_mask (`torch.Tensor` of shape `(rows, length)`, *optional*): 0 marks padding.
        arguments (`Mapping[str, Any]`): With the types of the tokens, if there are any.
        begin (`int`): The first column.
    """
    types = {name: arguments[name] for name in TOKEN_TYPES if arguments.get(name) is not None}
    make_masks = getattr(base, "create_masks_for_generate", None)  # where a base says which tokens see one another
    if not types or make_masks is None:
        return not types and getattr(text_config(base), "use_bidirectional_attention", None) is True
    masks = make_masks(
        config=base.config,
        inputs_embeds=torch.zeros(*tokens.shape[:2], 1, device=tokens.device),
        attention_mask=attention_mask,
        past_key_values=None,
        position_ids=None,
        is_first_iteration=True,
        **types,
    )
    return any(_shows_later(mask, begin) for mask in (masks.values() if isinstance(masks, dict) else [masks]))


def _shows_later(mask: Any, begin: int) -> bool:
    """Whether a mask `(rows, heads, tokens, keys)` shows a key from `begin` on to a token before it."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return False
    visible = mask > HIDDEN if mask.is_floating_point() else mask.bool()
    return bool(visible.triu(1)[..., begin:].any())
