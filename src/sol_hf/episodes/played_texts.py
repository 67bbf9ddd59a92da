# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Plays known texts as `generate` decodes: several episodes, with a KV refresh between them and a bank for every row.

    text    | context: dense, once | episode | refresh | episode | ... | y      every step is scored on the next token

The budgets of a text are rows of the same decode steps. They begin with copies of the keys and values of its context.
No tensor over the vocabulary is kept after its step, apart from the dense predictions of a text.
"""

import copy
from dataclasses import dataclass

import torch
from torch.nn.functional import kl_div

from ..budget.action_space import ActionSpace
from ..cache.sol_cache import SOLCache
from ..controllers.base import Controller
from ..controllers.processors import ActionProcessorList
from ..decoding.controls import DecodeControls
from ..decoding.forward_inputs import ForwardInputs
from ..decoding.session import DecodingSession
from ..decoding.step import decode_step
from ..execution.instrumentation import Instrumentation
from ..modeling_sol import SOLForCausalLM
from .rollouts import prefill
from .step_settings import StepSettings


@dataclass(frozen=True)
class Begun:
    """Texts after their context.

    Args:
        tokens (`torch.LongTensor` of shape `(texts, context + steps + 1)`): Token ids.
        context_length (`int`): Tokens of the context.
        cache ([`SOLCache`]): Keys and values of the context; it does not change.
        hidden_state (`torch.Tensor` of shape `(texts, hidden_size)`): The LM's state after the context.
        dense (`torch.Tensor` of shape `(texts, steps, vocab)`, *optional*): Dense log-probabilities at every step.
        logits (`torch.Tensor` of shape `(texts, vocab)`, *optional*): After the context, for a controller with
            `needs_logits`.
    """

    tokens: torch.Tensor
    context_length: int
    cache: SOLCache
    hidden_state: torch.Tensor
    dense: torch.Tensor | None
    logits: torch.Tensor | None

    @classmethod
    def of(
        cls, model: SOLForCausalLM, tokens: torch.Tensor, context_length: int, dense: bool, keep_logits: bool
    ) -> "Begun":
        """Run the contexts, and with `dense` also whole texts for their dense predictions."""
        predicted = prefill(model, tokens, context_length, dense=True).logprobs if dense else None
        prefix = prefill(model, tokens, context_length, keep_logits=keep_logits)
        return cls(tokens, context_length, prefix.cache, prefix.hidden_states[:, 0], predicted, prefix.logits)

    @property
    def steps(self) -> int:
        """Decode steps after the context."""
        return self.tokens.shape[1] - self.context_length - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory, about."""
        layers = [x for layer in self.cache.layers for x in (layer.keys, layer.values) if isinstance(x, torch.Tensor)]
        others = (x for x in (self.dense, self.logits) if x is not None)
        return sum(x.nbytes for x in (*layers, *others))


@dataclass(frozen=True)
class Played:
    """What was played; the budgets of a text are adjacent rows.

    Args:
        losses (`torch.Tensor` of shape `(rows,)`): Mean loss of a step, in nats.
        divergence (`torch.Tensor` of shape `(rows,)`): Mean KL(dense ‖ sparse) of a step, in nats; 0 if it was not
            computed.
        actions (`torch.LongTensor` of shape `(rows, steps)`): Action ids.
    """

    losses: torch.Tensor
    divergence: torch.Tensor
    actions: torch.Tensor


def play(
    model: SOLForCausalLM,
    begun: Begun,
    targets: torch.Tensor,
    controller: Controller,
    processors: ActionProcessorList,
    dense_axes: frozenset[str] = frozenset(),
) -> Played:
    """Play texts under a controller, once per row of `targets`.

    Args:
        model ([`SOLForCausalLM`]): Base and policy, whose stored options say how steps are computed.
        begun ([`Begun`]): The texts.
        targets (`torch.Tensor` of shape `(rows, axes)`): Budgets in ratio units, `rows / texts` for every text.
        controller ([`Controller`]): Chooses the actions.
        processors ([`ActionProcessorList`]): Applied to the controller's scores.
        dense_axes (`frozenset[str]`, *optional*): Axes that the processors hold at their dense level in all rows.
    """
    settings, repeats = StepSettings.of(model), len(targets) // len(begun.tokens)
    rows = begun.tokens.repeat_interleave(repeats, dim=0)
    losses = torch.zeros(len(rows), device=rows.device)
    divergence = torch.zeros_like(losses)
    controls = _controls(model, settings, controller, processors, dense_axes)
    with Instrumentation.of(model.base), torch.inference_mode():
        session = DecodingSession(model.base, _rows_of(begun, repeats, controller), controls, begun.context_length)
        session.steps = torch.full((len(rows),), begun.steps, device=rows.device) if controls.is_exact else None
        session.begin().set_targets(targets)
        for step in range(begun.steps):
            token, label = rows[:, begun.context_length + step :][:, :2].split(1, dim=1)
            logits = decode_step(session, ForwardInputs(token)).logits[:, -1].float()
            scale = logits.logsumexp(dim=-1, keepdim=True)
            losses += (scale - logits.gather(1, label)).squeeze(1)
            if begun.dense is not None:
                dense = begun.dense[:, step].repeat_interleave(repeats, dim=0)
                divergence += kl_div(logits - scale, dense, reduction="none", log_target=True).sum(dim=-1)
        actions = torch.stack([action for action, _ in session.cache.trace], dim=1)
    return Played((losses / begun.steps).clone(), (divergence / begun.steps).clone(), actions.clone())


def _rows_of(begun: Begun, repeats: int, controller: Controller) -> SOLCache:
    """A cache with `repeats` rows of every text after its context."""
    cache, before = copy.deepcopy(begun.cache), begun.tokens[:, begun.context_length - 1, None]
    digest = None
    if controller.needs_logits:
        if begun.logits is None:
            raise ValueError(f"{type(controller).__name__} needs logits: begin the texts with `keep_logits=True`.")
        digest = controller.digest_logits(begun.logits)
    cache.end_episode(begun.hidden_state, before, digest)
    cache.batch_repeat_interleave(repeats)
    return cache


def _controls(
    model: SOLForCausalLM,
    settings: StepSettings,
    controller: Controller,
    processors: ActionProcessorList,
    dense_axes: frozenset[str],
) -> DecodeControls:
    space: ActionSpace = settings.space
    return DecodeControls(
        controller=controller,
        budget=None,
        processors=processors,
        rule=model.config.selection_rule,
        episode_length=model.config.episode_length,
        kv_refresh=settings.kv_refresh,
        backend=settings.backend,
        bits_backend=settings.bits_backend,
        kv_dtype=settings.kv_dtype,
        dense_axes=dense_axes,
        action_space=space,
    )
