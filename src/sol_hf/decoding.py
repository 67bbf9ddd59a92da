# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One forward of the base under a budget: dense prefix, decode steps, KV refresh.

`generate`, `score` and everything built on them come through [`decode_forward`]. It is stateless: what has to be
remembered is in the [`SOLCache`].

    tokens of a call     | d d d d d d d d | s |        d: one dense forward of the base
    cache.decode_from                        ^          s: a decode step each
"""

import functools
import inspect
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import LogitsProcessorList, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .actions import Budget
from .cache import SOLCache
from .captured_forward import CapturedForward
from .controllers import Controller, Observation
from .criteria import SelectionRule
from .step_plan import Replay, StepPlan, active_forward


NOT_CAPTURED = ("use_cache", "cache_position", "logits_to_keep")
"""Arguments of a forward that make no difference to a captured one."""
GROWTH_TOKENS = 256
"""Room for so many tokens at least, or a quarter more, is made with a CUDA graph."""
AUTO_REFRESH_BELOW = 0.45
"""Mean `token_keep` or `mlp_keep` of an episode; where it comes from is in docs/performance.md."""


@dataclass(frozen=True)
class DecodeControls:
    """What a generation runs under; one object per `generate` or `score` call.

    Args:
        controller ([`Controller`]): Scores the actions.
        budget ([`Budget`], *optional*): Targets; `None` for a controller that needs none.
        processors ([`ActionProcessorList`]): Applied to the scores in order.
        rule ([`SelectionRule`]): How cached keys are selected.
        episode_length (`int`): Steps in an episode.
        kv_refresh (`bool` or `"auto"`): Whether an episode ends with a dense forward over its tokens, see
            [`needs_refresh`].
        do_sample (`bool`): Draw the action instead of taking the best.
        temperature (`float`): Divides the scores before drawing.
        backend (`str`): For the [`StepPlan`]s: which implementation of a step's parts to use.
        bits_backend (`str`): For the [`StepPlan`]s: how `bits` is put into effect.
        cuda_graphs (`bool`): Run the base's part of steps and KV refreshes from CUDA graphs.
        dense_axes (`frozenset[str]`): Axes that stay dense whatever the controller scores.
    """

    controller: Controller
    budget: Budget | None
    processors: LogitsProcessorList
    rule: SelectionRule
    episode_length: int
    kv_refresh: bool | str = True
    do_sample: bool = False
    temperature: float = 1.0
    backend: str = "auto"
    bits_backend: str = "fake"
    cuda_graphs: bool = False
    dense_axes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ForwardInputs:
    """The arguments of a forward that concern its tokens; slices of it are what the base gets.

    Args:
        tokens (`torch.Tensor`): Ids `(rows, length)`, or embeddings `(rows, length, embedding_size)`.
        attention_mask (`torch.Tensor` of shape `(rows, cached + length)`, *optional*): 0 marks left padding.
        extra (`dict[str, Any]`): Further arguments for the base.
    """

    tokens: torch.Tensor
    attention_mask: torch.Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)


@functools.lru_cache
def accepted_arguments(model_class: type[nn.Module]) -> frozenset[str]:
    """Names of the arguments that the forward of a model class spells out."""
    return frozenset(inspect.signature(model_class.forward).parameters)


def base_forward(
    base: PreTrainedModel,
    tokens: torch.Tensor,
    cache: SOLCache,
    inputs: ForwardInputs,
    logits_to_keep: int = 1,
) -> CausalLMOutputWithPast:
    """Run the base on `tokens`, which follow what the cache holds."""
    begin, length = cache.get_seq_length(), tokens.shape[1]
    arguments: dict[str, Any] = dict(inputs.extra)
    arguments["inputs_embeds" if tokens.is_floating_point() else "input_ids"] = tokens
    if inputs.attention_mask is not None:
        arguments["attention_mask"] = inputs.attention_mask[:, : begin + length]
    accepted = accepted_arguments(base.__class__)
    if cache.position_offset is not None and "position_ids" in accepted:
        slots = torch.arange(begin, begin + length, device=tokens.device)
        arguments["position_ids"] = (slots - cache.position_offset[:, None]).clamp(min=0)
    if "logits_to_keep" in accepted:
        arguments["logits_to_keep"] = logits_to_keep
    output = base(**arguments, past_key_values=cache, use_cache=True, return_dict=True)
    if logits_to_keep and output.logits.shape[1] > logits_to_keep:
        output.logits = output.logits[:, -logits_to_keep:]
    return output


def dense_forward(
    base: PreTrainedModel,
    tokens: torch.Tensor,
    cache: SOLCache,
    inputs: ForwardInputs,
    logits_to_keep: int = 1,
    replay: Replay | None = None,
) -> CausalLMOutputWithPast:
    """Process `tokens` densely, as a KV refresh if there is a `replay`, and begin a new episode after them."""
    with active_forward(replay=replay) as context:
        output = base_forward(base, tokens, cache, inputs, logits_to_keep)
    cache.end_episode(context.last_hidden_state(), tokens[:, -1:], logits_digest(cache, output))
    return output


def logits_digest(cache: SOLCache, output: CausalLMOutputWithPast) -> torch.Tensor | None:
    """What the controller in force keeps of the logits of the last token, `None` if it does not look at them."""
    if cache.controls is None or not cache.controls.controller.needs_logits:
        return None
    return cache.controls.controller.digest_logits(output.logits[:, -1])


def embed(base: PreTrainedModel, token: torch.Tensor) -> torch.Tensor:
    """Input embedding of ids; embeddings pass through."""
    return token if token.is_floating_point() else base.get_input_embeddings()(token)


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


def observe(base: PreTrainedModel, cache: SOLCache, token: torch.Tensor) -> Observation:
    """What the controller gets to see before processing `token` `(rows, 1)`."""
    controls, episode = cache.controls, cache.episode
    rows, device = cache.rows, token.device
    seen = cache.get_seq_length() + 1
    count = torch.full((rows,), seen, device=device) if cache.padding is None else seen - cache.padding
    if episode.hidden_state is None and seen > 1:
        raise ValueError("The hidden state before this token is unknown after `crop`: pass two tokens or more.")
    embedding, before = embed(base, token)[:, -1], None
    if episode.length == 0 and episode.token_before is not None:
        before = embed(base, episode.token_before)[:, -1]
    if episode.hidden_state is None:
        size = base.get_output_embeddings().weight.shape[-1]
        episode.hidden_state = torch.zeros(rows, size, device=device, dtype=embedding.dtype)
    last = controls.episode_length - episode.length
    uncontrollable_ahead = (controls.rule.sink_tokens + controls.rule.window_tokens + 2 - count).clamp(min=0)
    space = cache.action_space
    start = torch.full((rows,), len(space), dtype=torch.long, device=device)
    return Observation(
        hidden_state=episode.hidden_state,
        token_embedding=embedding,
        previous_action=episode.steps[-1].action if episode.steps else start,
        controllable=controls.rule.is_controllable(count),
        remaining=(last - uncontrollable_ahead).clamp(min=0).float(),
        step=episode.length,
        total_step=len(cache.trace),
        episode_length=controls.episode_length,
        targets=cache.targets,
        ledger=cache.ledger,
        action_space=space,
        state=episode.controller_state,
        page_fill=controls.rule.page_fill(count),
        previous_hidden_state=episode.steps[-1].previous_hidden if episode.steps else None,
        previous_embedding=before,
        logits_digest=episode.logits_digest,
    )


def choose(observation: Observation, cache: SOLCache) -> torch.Tensor:
    """Action ids `(rows,)`: the best by the controller's processed scores, or a draw; dense where not controllable."""
    controls, space = cache.controls, cache.action_space
    scores = controls.controller(observation)
    if scores.shape != (observation.rows, len(space)):
        raise ValueError(
            f"{type(controls.controller).__name__} returned scores of shape {tuple(scores.shape)}, expected "
            f"{(observation.rows, len(space))}."
        )
    action_ids = cache.episode.actions(observation.rows, scores.device)
    scores = controls.processors(action_ids, scores, observation=observation)
    if controls.do_sample:
        actions = torch.multinomial((scores / controls.temperature).softmax(dim=-1), 1).squeeze(1)
    else:
        actions = scores.argmax(dim=-1)
    return torch.where(observation.controllable, actions, space.dense_id)


def decode_step(
    base: PreTrainedModel, token: torch.Tensor, cache: SOLCache, inputs: ForwardInputs, active: torch.Tensor | None
) -> CausalLMOutputWithPast:
    """Process one token per row, `(rows, 1)` or `(rows, 1, embedding_size)`, under an action chosen for it.

    `active` `(rows,)` names the rows that are still running; the others do not count in the averages.
    """
    if cache.episode.length == cache.controls.episode_length:
        if needs_refresh(cache):
            refresh(base, cache, inputs)
        else:
            last = cache.episode
            cache.end_episode(last.hidden_state, last.steps[-1].token, last.logits_digest)
    observation = observe(base, cache, token)
    actions = choose(observation, cache)
    controls, values = cache.controls, cache.action_space.values_on(actions.device)[actions]
    if is_captured(cache, token, inputs):
        logits, hidden = current_capture(base, cache)(token, values)
        output, is_dense = CausalLMOutputWithPast(logits=logits, past_key_values=cache), False
    else:
        settings = controls.rule, controls.backend, controls.bits_backend, controls.dense_axes
        plan = StepPlan.from_values(values, cache, *settings)
        with active_forward(plan) as context:
            output = base_forward(base, token, cache, without_needless_mask(inputs, cache))
        hidden, is_dense = context.last_hidden_state(), plan.is_dense
    counted = observation.controllable if active is None else observation.controllable & active
    cache.record(token, actions, counted, hidden, logits_digest(cache, output))
    if cache.episode.first_sparse is None and not is_dense:
        cache.episode.first_sparse = cache.episode.length - 1
    return output


def without_needless_mask(inputs: ForwardInputs, cache: SOLCache) -> ForwardInputs:
    """The inputs of a step without a mask that masks nothing, which transformers would bring to the host to see."""
    if cache.padding is not None or inputs.tokens.device.type == "cpu":
        return inputs
    return replace(inputs, attention_mask=None)


def is_captured(cache: SOLCache, tokens: torch.Tensor, inputs: ForwardInputs) -> bool:
    """Whether the forward that processes `tokens` `(rows, number)` is to run from a [`CapturedForward`].

    One that is asked for more than logits, such as all hidden states, is not.
    """
    length = cache.get_seq_length()
    extra = (value for name, value in inputs.extra.items() if name not in NOT_CAPTURED)
    asks_more = any(value is not None and value is not False for value in extra)
    if cache.controls.backend == "reference" or tokens.is_floating_point() or length == 0 or asks_more:
        return False
    if cache.controls.cuda_graphs:
        return True
    return cache.capture_up_to is not None and length + tokens.shape[1] <= cache.capture_up_to


def current_capture(base: PreTrainedModel, cache: SOLCache, refreshed: int = 0) -> CapturedForward:
    """The cache's [`CapturedForward`] for steps, or for KV refreshes of so many tokens a row.

    It is made anew if what it would compute has changed, or if there is no room for the tokens.
    """
    controls, length = cache.controls, cache.get_seq_length() + (refreshed or 1)
    room = max(cache.captured_room, cache.capture_up_to or 0)
    if length > room:
        room = cache.captured_room = length + max(GROWTH_TOKENS, length // 4)
    kind = "refresh" if refreshed else "step"
    captured = cache.captured.get(kind)
    if captured is None or not captured.is_current(base, controls.rule, controls.dense_axes, refreshed):
        captured = CapturedForward(base, cache, controls.rule, controls.dense_axes, room, refreshed)
        cache.captured[kind] = captured
    return captured


def decode_forward(
    base: PreTrainedModel, inputs: ForwardInputs, cache: SOLCache, all_logits: bool, active: torch.Tensor | None = None
) -> CausalLMOutputWithPast:
    """Process `inputs`: densely up to `cache.decode_from`, one decode step for each token from there on.

    Without `decode_from`, all tokens but the last are dense. A dense part that follows an unfinished episode takes
    that episode's tokens along, which refreshes them.

    Returns:
        `CausalLMOutputWithPast`: the last step's output; its logits are of the last token, `(rows, 1, vocab)`, or of
        all tokens, `(rows, length, vocab)`, with `all_logits`.
    """
    tokens, length = inputs.tokens, inputs.tokens.shape[1]
    dense = length - 1
    if cache.controls is None:
        dense = length
    elif cache.decode_from is not None:
        dense = min(max(cache.decode_from - cache.get_seq_length(), 0), length)
    outputs = []
    if dense:
        prefix = tokens[:, :dense]
        if cache.episode.length and needs_refresh(cache):
            replayed = take_back_sparse(base, cache)
            if replayed.is_floating_point() != prefix.is_floating_point():
                replayed, prefix = embed(base, replayed), embed(base, prefix)
            prefix = torch.cat([replayed, prefix], dim=1)
        outputs.append(dense_forward(base, prefix, cache, inputs, dense if all_logits else 1))
    for index in range(dense, length):
        outputs.append(decode_step(base, tokens[:, index : index + 1], cache, inputs, active))
    last = outputs[-1]
    if all_logits and len(outputs) > 1:
        last.logits = torch.cat([output.logits for output in outputs], dim=1)
    last.past_key_values = cache
    return last
