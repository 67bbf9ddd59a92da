# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Teacher-forced rollouts: the same tokens of a block under many sampled schedules, over one shared prefix.

    block    | context: dense, once | x x x x ... x | y        x: a decode step per rollout, scored on the next token

A rollout ends with its episode, so there is no KV refresh. Under a budget over the generation it may begin with the
[`Bank`] of a later episode, so that short rollouts meet all states of the bank that long texts do. The policy's
observations, its actions and the log-probability of every label are recorded for training. No tensor over the
vocabulary is kept after its step.
"""

from dataclasses import dataclass, fields

import torch
from torch.nn.functional import kl_div

from ..cache.sol_cache import SOLCache
from ..controllers.base import Controller, Observation
from ..controllers.hard_budget import HardBudgetProcessor, within
from ..controllers.policy import PolicyController
from ..controllers.processors import ActionProcessorList
from ..decoding.base_forward import base_forward
from ..decoding.controls import DecodeControls
from ..decoding.forward_inputs import ForwardInputs
from ..decoding.session import DecodingSession
from ..decoding.step import decode_step
from ..execution.instrumentation import Instrumentation
from ..execution.plan import active_forward
from ..modeling_sol import SOLForCausalLM
from ..modeling_sol_policy import SOLPolicyModel
from .step_settings import StepSettings


@dataclass(frozen=True)
class Rollouts:
    """Observations, actions and results of a batch of rollouts; the rollouts of a block are adjacent rows.

    Args:
        hidden_states (`torch.Tensor` of shape `(rows, steps, hidden_size)`): The LM's state before every step.
        token_embeddings (`torch.Tensor` of shape `(rows, steps, embedding_size)`): Input embedding of the token that a
            step processes.
        scalars (`torch.Tensor` of shape `(rows, steps, scalars)`): Inputs of the policy, see [`Observation.scalars`].
        previous_actions (`torch.LongTensor` of shape `(rows, steps)`): Action of the step before.
        actions (`torch.LongTensor` of shape `(rows, steps)`): Action ids.
        action_logprobs (`torch.Tensor` of shape `(rows, steps)`): Log-probabilities of the actions when they were
            sampled; 0 if they were not sampled.
        controllable (`torch.BoolTensor` of shape `(rows, steps)`): The controllable steps, which are counted.
        label_logprobs (`torch.Tensor` of shape `(rows, steps)`): Log-probabilities of the next tokens, in nats.
        divergence (`torch.Tensor` of shape `(rows, steps)`): KL(dense ‖ sparse) in nats; 0 if it was not computed.
        targets (`torch.Tensor` of shape `(rows, axes)`): The budgets, in ratio units.
        bounds (`torch.Tensor` of shape `(rows, steps, 2, axes)`, *optional*): The smallest and the largest level that
            a hard budget allowed, for [`within`]; `None` if there was none.
        asked (`torch.Tensor` of shape `(rows, axes)`, *optional*): What a controller that follows the [`Bank`] was
            asked to spend, in ratio units; `None` if that is the budget.
    """

    hidden_states: torch.Tensor
    token_embeddings: torch.Tensor
    scalars: torch.Tensor
    previous_actions: torch.Tensor
    actions: torch.Tensor
    action_logprobs: torch.Tensor
    controllable: torch.Tensor
    label_logprobs: torch.Tensor
    divergence: torch.Tensor
    targets: torch.Tensor
    bounds: torch.Tensor | None = None
    asked: torch.Tensor | None = None

    @property
    def wanted(self) -> torch.Tensor:
        """What the episodes were asked to spend, of shape `(rows, axes)` in ratio units."""
        return self.targets if self.asked is None else self.asked

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """All that is known, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(Rollouts)}
        return {name: value for name, value in named.items() if value is not None}

    def to(self, device: torch.device | str) -> "Rollouts":
        """The rollouts on another device."""
        return Rollouts(**{name: value.to(device) for name, value in self.tensors.items()})

    @staticmethod
    def concatenate(parts: "list[Rollouts]") -> "Rollouts":
        """Several batches as one. Inference tensors become ordinary ones."""
        every = [part.tensors for part in parts]
        return Rollouts(**{name: torch.cat([part[name] for part in every]).clone() for name in every[0]})


@dataclass(frozen=True)
class DensePrefix:
    """Blocks after their dense prefill.

    Args:
        cache ([`SOLCache`]): Keys and values of the context, and of the continuation if that was run densely, too.
        context_length (`int`): Tokens of the context.
        hidden_states (`torch.Tensor` of shape `(blocks, 1 + steps, hidden_size)`): The LM's state after the context,
            and after every token of the continuation that was run.
        logprobs (`torch.Tensor` of shape `(blocks, steps, vocab)`, *optional*): Dense predictions of the labels.
        logits (`torch.Tensor` of shape `(blocks, vocab)`, *optional*): Logits after the context's last token.
    """

    cache: SOLCache
    context_length: int
    hidden_states: torch.Tensor
    logprobs: torch.Tensor | None = None
    logits: torch.Tensor | None = None


def prefill(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    context_length: int,
    dense: bool = False,
    keep_logits: bool = False,
) -> DensePrefix:
    """Run the context of `blocks` densely. What the steps after it need is made before, such as planes of weights.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.
        context_length (`int`): Tokens of the context, at least 1.
        dense (`bool`, *optional*, defaults to `False`): Run the continuation too, for its predictions.
        keep_logits (`bool`, *optional*, defaults to `False`): Keep the logits after the context, for a controller with
            `needs_logits`.

    Raises:
        ValueError: for blocks that leave no step, or if the steps cannot be computed as the model's options say.
    """
    steps = blocks.shape[1] - context_length - 1
    if context_length < 1 or steps < 1:
        raise ValueError(
            f"Blocks of {blocks.shape[1]} tokens leave no step to score after a context of {context_length}: they "
            "need `context_length` + `episode_length` + 1 tokens, and a context of at least 1."
        )
    tokens = blocks[:, : context_length + steps] if dense else blocks[:, :context_length]
    kept = 1 + steps if dense else 1
    StepSettings.of(model).prepare(model)
    with Instrumentation.of(model.base), torch.inference_mode():
        cache = model.new_cache()
        cache.set_up_rows(len(blocks), blocks.device)
        with active_forward() as context:
            output = base_forward(model.base, ForwardInputs(tokens), cache, logits_to_keep=kept)
        hidden = context.head_inputs()[:, -kept:]
        logprobs = output.logits[:, 1:].float().log_softmax(dim=-1) if dense else None
        logits = output.logits[:, 0].clone() if keep_logits else None
    return DensePrefix(cache, context_length, hidden, logprobs, logits)


class SampledPolicyController(Controller):
    """Samples the policy's actions by inverse transform of given uniform numbers, and records their log-probabilities.

    Args:
        policy ([`SOLPolicyModel`]): The policy.
        uniforms (`torch.Tensor` of shape `(rows, steps)`): One number in [0, 1) per action, so that an action does not
            depend on the other rows of the batch.
        temperature (`float`): Divides the logits.
        limit ([`HardBudgetProcessor`], *optional*): Actions are drawn from those that it allows; the rollouts need it
            among their processors, too.
    """

    follows_bank = True

    def __init__(
        self,
        policy: SOLPolicyModel,
        uniforms: torch.Tensor,
        temperature: float,
        limit: HardBudgetProcessor | None = None,
    ):
        self.uniforms, self.temperature, self.limit = uniforms, temperature, limit
        self.score = PolicyController(policy)
        self.logprobs: list[torch.Tensor] = []

    def __call__(self, observation: Observation) -> torch.Tensor:
        scores = self.score(observation) / self.temperature
        if self.limit is not None:
            allowed = within(self.limit.bounds(observation), observation.action_space)
            scores = scores.masked_fill(~allowed, float("-inf"))
        logprobs = scores.log_softmax(dim=-1)
        ladder = logprobs.double().exp().cumsum(dim=-1)
        place = self.uniforms[:, observation.step, None].double() * ladder[:, -1:]
        drawn = torch.searchsorted(ladder, place, right=self.limit is not None)  # not one that is ruled out, for 0
        drawn = drawn.clamp(max=logprobs.shape[-1] - 1)
        self.logprobs.append(logprobs.gather(1, drawn).squeeze(1))
        return torch.zeros_like(logprobs).scatter(1, drawn, 1.0)


class Recorder(Controller):
    """Returns the scores of another controller, and records the observations.

    Args:
        controller ([`Controller`]): Chooses the actions.
        processors ([`ActionProcessorList`]): The bounds of one that keeps a hard budget are recorded, too.
    """

    def __init__(self, controller: Controller, processors: ActionProcessorList):
        self.controller = controller
        self.limit = next((x for x in processors if isinstance(x, HardBudgetProcessor)), None)
        self.needs_budget, self.needs_logits = controller.needs_budget, controller.needs_logits
        self.follows_bank = controller.follows_bank
        self.seen: list[Observation] = []
        self.scalars: list[torch.Tensor] = []
        self.bounds: list[torch.Tensor] = []

    def __call__(self, observation: Observation) -> torch.Tensor:
        self.seen.append(observation)
        self.scalars.append(observation.scalars)
        if self.limit is not None:
            self.bounds.append(torch.stack(self.limit.bounds(observation), dim=1))
        return self.controller(observation)

    def observations(self) -> dict[str, torch.Tensor]:
        """The observations, by the fields of [`Rollouts`]."""
        return {
            "hidden_states": torch.stack([seen.hidden_state for seen in self.seen], dim=1),
            "token_embeddings": torch.stack([seen.token_embedding for seen in self.seen], dim=1),
            "scalars": torch.stack(self.scalars, dim=1),
            "previous_actions": torch.stack([seen.previous_action for seen in self.seen], dim=1),
        }

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        return self.controller.digest_logits(logits)


def one_episode(
    model: SOLForCausalLM, controller: Controller, steps: int, processors: ActionProcessorList | None = None
) -> DecodeControls:
    """Controls of a single episode of `steps` steps, for rows with targets of their own; see [`StepSettings`]."""
    settings = StepSettings.of(model)
    return DecodeControls(
        controller=controller,
        budget=None,
        processors=processors if processors is not None else ActionProcessorList(),
        rule=model.config.selection_rule,
        episode_length=steps,
        kv_refresh=False,
        backend=settings.backend,
        bits_backend=settings.bits_backend,
        action_space=settings.space,
    )


def roll_out(
    model: SOLForCausalLM,
    prefix: DensePrefix,
    blocks: torch.Tensor,
    targets: torch.Tensor,
    controller: Controller,
    processors: ActionProcessorList | None = None,
    balance: torch.Tensor | None = None,
) -> Rollouts:
    """Run the continuation of every block under a controller, once per row of `targets`.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        prefix ([`DensePrefix`]): From [`prefill`].
        blocks (`torch.LongTensor` of shape `(blocks, context + steps + 1)`): Token ids.
        targets (`torch.Tensor` of shape `(rows, axes)`): Budgets in ratio units; `rows` is a multiple of the number of
            blocks.
        controller ([`Controller`]): Chooses the actions.
        processors ([`ActionProcessorList`], *optional*): Applied to the controller's scores.
        balance (`torch.Tensor` of shape `(rows, axes)`, *optional*): What the [`Bank`] of every row has, as at the
            start of a later episode of a long text; by default that of the first one.

    Raises:
        ValueError: if the number of targets is not a multiple of that of the blocks, the controller needs logits
            that were not kept, or there is a balance, but no processor that keeps a bank.
    """
    if len(targets) % len(blocks):
        raise ValueError(f"{len(targets)} budgets cannot be divided among {len(blocks)} blocks.")
    if controller.needs_logits and prefix.logits is None:
        raise ValueError(f"{type(controller).__name__} needs logits: make the prefix with `keep_logits=True`.")
    repeats, context_length = len(targets) // len(blocks), prefix.context_length
    steps = blocks.shape[1] - context_length - 1
    recorder = Recorder(controller, processors if processors is not None else ActionProcessorList())
    controls = one_episode(model, recorder, steps, processors)
    if balance is not None and not controls.keeps_bank:
        raise ValueError("A `balance` needs a `GenerationBudgetProcessor` among the processors, which keeps a bank.")
    rows = blocks.repeat_interleave(repeats, dim=0)
    logprobs, divergence = [], []
    with Instrumentation.of(model.base), torch.inference_mode():
        cache = prefix.cache.fan_out(repeats, prefix.hidden_states[:, 0], context_length)
        session = DecodingSession(model.base, cache, controls, decode_from=context_length).begin()
        session.set_targets(targets)
        if balance is not None and cache.ledger.bank is not None:
            cache.ledger.bank = cache.ledger.bank.begun_with(balance)
        asked = cache.ledger.bank.asked if cache.ledger.bank is not None and controller.follows_bank else None
        cache.episode.token_before = rows[:, context_length - 1, None]
        if controller.needs_logits and prefix.logits is not None:
            cache.episode.logits_digest = controller.digest_logits(prefix.logits.repeat_interleave(repeats, dim=0))
        for step in range(steps):
            token = rows[:, context_length + step, None]
            label = rows[:, context_length + step + 1, None]
            logits = decode_step(session, ForwardInputs(token)).logits[:, -1].float()
            scale = logits.logsumexp(dim=-1)
            logprobs.append(logits.gather(1, label).squeeze(1) - scale)
            if prefix.logprobs is not None:
                dense = prefix.logprobs[:, step].repeat_interleave(repeats, dim=0)
                sparse = logits - scale[:, None]
                divergence.append(kl_div(sparse, dense, reduction="none", log_target=True).sum(dim=-1))
        rollouts = _collect(recorder, cache, logprobs, divergence, targets, asked)
    return Rollouts.concatenate([rollouts])


def _collect(
    recorder: Recorder,
    cache: SOLCache,
    logprobs: list[torch.Tensor],
    divergence: list[torch.Tensor],
    targets: torch.Tensor,
    asked: torch.Tensor | None,
) -> Rollouts:
    """The rollouts of an episode, from what was kept of each of its steps."""
    stacked = torch.stack(logprobs, dim=1)
    controller = recorder.controller
    sampler = controller if isinstance(controller, SampledPolicyController) else None
    sampled, bounds = [] if sampler is None else sampler.logprobs, recorder.bounds
    return Rollouts(
        **recorder.observations(),
        actions=torch.stack([action for action, _ in cache.trace], dim=1),
        action_logprobs=torch.stack(sampled, dim=1) if sampled else torch.zeros_like(stacked),
        controllable=torch.stack([counted for _, counted in cache.trace], dim=1),
        label_logprobs=stacked,
        divergence=torch.stack(divergence, dim=1) if divergence else torch.zeros_like(stacked),
        targets=targets,
        bounds=torch.stack(bounds, dim=1) if bounds else None,
        asked=asked,
    )
