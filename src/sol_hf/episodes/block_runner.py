# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""One episode on every block of a text, many times over: the engine of all evaluations on text blocks.

    block    | context: dense, once | x x x x ... x | y        x: a decode step, scored on the next token

A [`Play`] says who decides, and at which budgets. All plays share the prefill of a block, and all budgets of a play
are rows of the same decode steps. Processes of an `accelerate launch` share the batches; a batch is made of the same
blocks in any number of processes, so that the results are those of one process.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm

from ..controllers.base import Controller
from ..controllers.processors import ActionProcessorList
from ..modeling_sol import SOLForCausalLM
from .rollouts import DensePrefix, prefill, roll_out


@dataclass(frozen=True)
class Play:
    """Who plays an episode on every block, once per budget.

    Args:
        targets (`torch.Tensor` of shape `(budgets, 3)`): In ratio units.
        controller_of (`Callable`): `controller_of(begin, end)` gives the [`Controller`] of the blocks `begin..end`,
            which has a row per block and budget; those of a block are adjacent.
        processors ([`ActionProcessorList`], *optional*): Applied to its scores.
    """

    targets: torch.Tensor
    controller_of: Callable[[int, int], Controller]
    processors: ActionProcessorList | None = None


@dataclass(frozen=True)
class Played:
    """What came out, in nats a token.

    Args:
        losses (`torch.Tensor` of shape `(blocks, budgets)`): Mean loss of an episode.
        divergence (`torch.Tensor` of shape `(blocks, budgets)`): Mean KL(dense ‖ sparse); 0 unless it was asked for.
        actions (`torch.LongTensor` of shape `(blocks, budgets, steps)`): Action ids.
    """

    losses: torch.Tensor
    divergence: torch.Tensor
    actions: torch.Tensor


@dataclass(frozen=True)
class BlockPlayer:
    """Blocks to play, batch by batch, each process its share.

    A process that has no batch left repeats the last and drops the result, since the processes of a sharded base have
    to run in step.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        tokens (`torch.LongTensor` of shape `(blocks, context_length + steps + 1)`): The same in every process.
        context_length (`int`): Tokens before the first step of a block.
        batch_size (`int`): Blocks that run at the same time.
        progress (`bool`, *optional*, defaults to `False`): Show a bar per call.
        advance (`Callable`, *optional*): Told after every play of a batch how many episodes of this process are done.
    """

    model: SOLForCausalLM
    tokens: torch.Tensor
    context_length: int
    batch_size: int
    progress: bool = False
    advance: Callable[[int], None] | None = None

    @property
    def steps(self) -> int:
        """Decode steps of an episode."""
        return self.tokens.shape[1] - self.context_length - 1

    def batches(self, name: str = "") -> Iterator[tuple[slice, torch.Tensor, slice]]:
        """This process's batches: where they are, their tokens, and where their results go (nowhere: a repetition)."""
        state, total = PartialState(), len(self.tokens)
        count = math.ceil(total / self.batch_size)
        rounds = range(math.ceil(count / state.num_processes))
        for number in tqdm(rounds, desc=name, disable=not (self.progress and state.is_main_process)):
            batch = number * state.num_processes + state.process_index
            begin = min(batch, count - 1) * self.batch_size
            tokens = self.tokens[begin : begin + self.batch_size].to(self.model.base.device)
            end = begin + len(tokens)
            yield slice(begin, end), tokens, slice(begin, end if batch < count else begin)

    def gather(self, found: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, each of which has filled its own blocks."""
        return reduce(found.to(PartialState().device), "sum").cpu()

    def play(self, plays: Sequence[Play], name: str = "", divergence: bool = False) -> list[Played]:
        """Play all blocks.

        Args:
            plays (`Sequence[Play]`): What to play.
            name (`str`, *optional*): For the bar.
            divergence (`bool`, *optional*, defaults to `False`): Also run the continuations densely, for KL(dense ‖
                sparse).

        Returns:
            `list[Played]`: One per play; the same in every process.
        """
        total = len(self.tokens)
        losses = [torch.zeros(total, len(play.targets)) for play in plays]
        divergences = [torch.zeros_like(x) for x in losses]
        actions = [torch.zeros(total, len(play.targets), self.steps, dtype=torch.long) for play in plays]
        for where, tokens, some in self.batches(name):
            controllers = [play.controller_of(where.start, where.stop) for play in plays]
            keep_logits = any(controller.needs_logits for controller in controllers)
            prefix = prefill(self.model, tokens, self.context_length, divergence, keep_logits)
            kept = some.stop - some.start
            for number, (play, controller) in enumerate(zip(plays, controllers, strict=True)):
                found = self._play_batch(play, prefix, tokens, controller)
                losses[number][some] = found.losses[:kept]
                divergences[number][some] = found.divergence[:kept]
                actions[number][some] = found.actions[:kept]
                if self.advance is not None:
                    self.advance(kept * len(play.targets))
        return [
            Played(self.gather(a).double(), self.gather(b).double(), self.gather(c))
            for a, b, c in zip(losses, divergences, actions, strict=True)
        ]

    def _play_batch(self, play: Play, prefix: DensePrefix, tokens: torch.Tensor, controller: Controller) -> Played:
        wanted = play.targets.repeat(len(tokens), 1).to(tokens.device)
        rollouts = roll_out(self.model, prefix, tokens, wanted, controller, play.processors)
        shape = (len(tokens), len(play.targets), self.steps)
        return Played(
            -rollouts.label_logprobs.view(shape).mean(dim=-1).cpu(),
            rollouts.divergence.view(shape).mean(dim=-1).cpu(),
            rollouts.actions.view(shape).cpu(),
        )

    def dense_losses(self, name: str = "") -> torch.Tensor:
        """Loss `(blocks,)` of the base itself."""
        losses = torch.zeros(len(self.tokens))
        for _, tokens, some in self.batches(name):
            logprobs = prefill(self.model, tokens, self.context_length, dense=True).logprobs
            assert logprobs is not None, "asked for by `dense`"
            found = -logprobs.gather(2, tokens[:, self.context_length + 1 :, None]).mean(dim=(1, 2)).cpu()
            losses[some] = found[: some.stop - some.start]
        return self.gather(losses).double()


@contextmanager
def without_dropout(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and back as it was."""
    was = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in was.items():
            part.training = training


def check_blocks(model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, batch_size: int) -> torch.Tensor:
    """Which steps of an episode are controllable, `(steps,)`.

    Args:
        model ([`SOLForCausalLM`]): Says how long an episode is.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + episode_length + 1)`): Token ids.
        context_length (`int`): Tokens before the first step.
        batch_size (`int`): Blocks that run at the same time.

    Raises:
        ValueError: if there are less than 2 blocks, blocks of another length, or no controllable step.
    """
    episode = model.config.episode_length
    if context_length < 1 or batch_size < 1:
        raise ValueError(f"`context_length` ({context_length}) and `batch_size` ({batch_size}) must be at least 1.")
    if blocks.dim() != 2 or blocks.shape[1] != context_length + episode + 1:
        raise ValueError(
            f"Blocks of shape {tuple(blocks.shape)} do not fit: with a context of {context_length} tokens and "
            f"episodes of {episode} steps, a block has {context_length + episode + 1} tokens. See `pack_blocks`."
        )
    if len(blocks) < 2:
        raise ValueError(f"A standard error needs 2 blocks or more, got {len(blocks)}: give more text.")
    rule = model.config.selection_rule
    counted = rule.is_controllable(torch.arange(context_length + 1, context_length + episode + 1))
    if not bool(counted.any()):
        raise ValueError(
            f"After a context of {context_length} tokens no step of an episode is controllable (it would have to see "
            f"more than {rule.sink_tokens + rule.window_tokens + 1} keys): raise `context_length`."
        )
    return counted
