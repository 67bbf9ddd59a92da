# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The KV refresh: a dense forward over the tokens of an episode."""

import torch
from transformers import PreTrainedModel

from ..cache.sol_cache import SOLCache
from ..execution.plan import Replay
from .base_forward import ForwardInputs, dense_forward, embed
from .captured import current_capture, is_captured


AUTO_REFRESH_BELOW = 0.45
"""Mean `token_keep` or `mlp_keep` of an episode; where it comes from is in docs/performance.md."""


def take_back_sparse(base: PreTrainedModel, cache: SOLCache) -> torch.Tensor:
    """Drop what the running episode wrote since its first sparse step, and return those tokens `(rows, steps)`.

    They are embeddings if any of them came as one.
    """
    tokens = [step.token for step in cache.episode.steps[cache.episode.first_sparse :]]
    cache.drop_tokens(len(tokens))
    if any(token.is_floating_point() for token in tokens):
        tokens = [embed(base, token) for token in tokens]
    return torch.cat(tokens, dim=1)


def refresh(base: PreTrainedModel, cache: SOLCache, inputs: ForwardInputs) -> None:
    """KV refresh: replace what the episode's steps wrote since the first sparse one, by one dense forward.

    Its logits are not computed, unless the controller looks at them: the token after the episode is known already.
    """
    tokens = take_back_sparse(base, cache)
    skips_head = not cache.controls.controller.needs_logits
    is_whole = tokens.shape[1] == cache.controls.episode_length
    if skips_head and is_whole and is_captured(cache, tokens, inputs):
        captured = current_capture(base, cache, tokens.shape[1])
        cache.end_episode(captured(tokens)[1], tokens[:, -1:])
        return
    replay = Replay(cache, cache.controls.backend, skips_head)
    dense_forward(base, tokens, cache, ForwardInputs(tokens, inputs.attention_mask), replay=replay)


def needs_refresh(cache: SOLCache) -> bool:
    """Whether the running episode left anything in the cache that a dense forward would not have, and that matters.

    With `kv_refresh="auto"` it matters if the mean `token_keep` or the mean `mlp_keep` of a row's steps was below
    `AUTO_REFRESH_BELOW`, or if only an accelerator knows the actions.
    """
    wanted = True if cache.controls is None else cache.controls.kv_refresh
    if wanted != "auto" or not cache.episode.polluted:
        return bool(wanted) and cache.episode.polluted
    actions = cache.episode.actions(cache.rows, cache.ledger.total_counts.device)
    if actions.device.type != "cpu":
        return True
    kept = cache.action_space.values[actions][..., :2].mean(dim=1)
    return bool(kept.min() < AUTO_REFRESH_BELOW)
