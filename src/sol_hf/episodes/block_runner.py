# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Runs one episode on every block of a text under given controllers and budgets, for all evaluations on text blocks.

    block    | context: dense, once | x x x x ... x | y        x: a decode step, scored on the next token

A [`Run`] has a controller and budgets. All runs share the prefill of a block, and all budgets of a run are rows of the
same decode steps. The batches are divided among the processes of an `accelerate launch`. A batch consists of the same
blocks for any number of processes, so that the results are the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm

from ..budget.action_space import ActionSpace
from ..controllers.base import Controller
from ..controllers.processors import TOLERANCE, ActionProcessorList, budget_processors
from ..modeling_sol import SOLForCausalLM
from .rollouts import DensePrefix, prefill, roll_out
from .step_settings import StepSettings


@dataclass(frozen=True)
class Run:
    """One episode on every block and at every budget, under one controller.

    Args:
        targets (`torch.Tensor` of shape `(budgets, axes)`): In ratio units.
        controller_of (`Callable`): `controller_of(begin, end)` returns the [`Controller`] for the blocks
            `begin..end - 1`. It gets one row per block and budget; the rows of a block are adjacent.
        pinned (`torch.BoolTensor` of shape `(budgets, axes)`, *optional*): The axes that each budget leaves dense,
            which are held there; see [`left_dense`].
        hard (`bool`, *optional*, defaults to `False`): Rule out actions after which a budget could not be kept, over
            `horizon`.
        horizon (`str`, *optional*): One of `HORIZONS`; by default that of [`StepSettings`].
    """

    targets: torch.Tensor
    controller_of: Callable[[int, int], Controller]
    pinned: torch.Tensor | None = None
    hard: bool = False
    horizon: str | None = None

    def processors(self, blocks: int, settings: StepSettings) -> ActionProcessorList:
        """The processors of `blocks` blocks, whose rows are adjacent."""
        pinned = torch.zeros_like(self.targets, dtype=torch.bool) if self.pinned is None else self.pinned
        return ActionProcessorList(
            budget_processors(pinned.repeat(blocks, 1), self.hard, self.horizon or settings.budget_horizon)
        )


def left_dense(targets: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """The axes that budgets leave dense: those whose target is the dense level.

    In a table of budgets, with a number for every axis, the dense one means what an axis without a target means in
    `generate`: it stays dense in every step.

    Args:
        targets (`torch.Tensor` of shape `(budgets, axes)`): In ratio units.
        space ([`ActionSpace`]): The axes.

    Returns:
        `torch.BoolTensor` of shape `(budgets, axes)`.
    """
    dense = torch.tensor([axis.dense / axis.scale for axis in space.axes])
    is_level = torch.tensor([max(space.levels[axis.name]) == axis.dense for axis in space.axes])
    return (targets.cpu() >= dense - TOLERANCE) & is_level


def controlled_axes(targets: torch.Tensor, space: ActionSpace) -> list[str]:
    """Names of the axes that budgets `(budgets, axes)` in ratio units do not all leave dense, see [`left_dense`]."""
    dense = left_dense(targets, space).all(dim=0).tolist()
    return [name for name, held in zip(space.axis_names, dense, strict=True) if not held]


@dataclass(frozen=True)
class RunResult:
    """The result of a [`Run`], in nats per token.

    Args:
        losses (`torch.Tensor` of shape `(blocks, budgets)`): Mean loss of an episode.
        divergence (`torch.Tensor` of shape `(blocks, budgets)`): Mean KL(dense ‖ sparse); 0 if it was not computed.
        actions (`torch.LongTensor` of shape `(blocks, budgets, steps)`): Action ids.
    """

    losses: torch.Tensor
    divergence: torch.Tensor
    actions: torch.Tensor


@dataclass(frozen=True)
class BlockRunner:
    """Runs episodes on blocks, batch by batch; every process runs its share.

    The processes of a sharded base have to run the base the same number of times. A process without further batches
    therefore repeats the last one and drops the result.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        tokens (`torch.LongTensor` of shape `(blocks, context_length + steps + 1)`): Token ids, the same in every
            process.
        context_length (`int`): Tokens before the first step of a block.
        batch_size (`int`): Blocks that run at the same time.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar per call.
        advance (`Callable`, *optional*): `advance(episodes)` is called after every run of a batch, with the number of
            episodes that this process has just finished.
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

    @property
    def space(self) -> ActionSpace:
        """The actions, with what they spend as the steps are computed."""
        return StepSettings.of(self.model).space

    def batches(self, name: str = "") -> Iterator[tuple[slice, torch.Tensor, slice]]:
        """The batches of this process: their slice of the blocks, their tokens `(blocks, tokens)`, and the slice of
        their results, which is empty for a repeated batch."""
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
        """The sum over all processes, each of which has set the values of its own blocks."""
        return reduce(found.to(PartialState().device), "sum").cpu()

    def run(self, runs: Sequence[Run], name: str = "", divergence: bool = False) -> list[RunResult]:
        """Run all blocks.

        Args:
            runs (`Sequence[Run]`): The runs.
            name (`str`, *optional*): Title of the progress bar.
            divergence (`bool`, *optional*, defaults to `False`): Also run the continuations densely, for KL(dense ‖
                sparse).

        Returns:
            `list[RunResult]`: One per run; the same in every process.
        """
        total = len(self.tokens)
        losses = [torch.zeros(total, len(run.targets)) for run in runs]
        divergences = [torch.zeros_like(x) for x in losses]
        actions = [torch.zeros(total, len(run.targets), self.steps, dtype=torch.long) for run in runs]
        for where, tokens, some in self.batches(name):
            controllers = [run.controller_of(where.start, where.stop) for run in runs]
            keep_logits = any(controller.needs_logits for controller in controllers)
            prefix = prefill(self.model, tokens, self.context_length, divergence, keep_logits)
            kept = some.stop - some.start
            for number, (run, controller) in enumerate(zip(runs, controllers, strict=True)):
                found = self._run_batch(run, prefix, tokens, controller)
                losses[number][some] = found.losses[:kept]
                divergences[number][some] = found.divergence[:kept]
                actions[number][some] = found.actions[:kept]
                if self.advance is not None:
                    self.advance(kept * len(run.targets))
        return [
            RunResult(self._finite(self.gather(a)), self._finite(self.gather(b)), self.gather(c))
            for a, b, c in zip(losses, divergences, actions, strict=True)
        ]

    def _finite(self, found: torch.Tensor) -> torch.Tensor:
        """Losses `(blocks, ...)` in double precision, the same in every process; an error if some are no numbers."""
        wrong = (~found.isfinite()).flatten(1).any(dim=1) if found.dim() > 1 else ~found.isfinite()
        if bool(wrong.any()):
            raise ValueError(
                f"The losses of {int(wrong.sum())} of {len(found)} blocks are infinite or undefined, first that of "
                f"block {int(wrong.nonzero()[0])}: load the base in bfloat16 or float32 (it is in "
                f"{self.model.base.dtype}), and check its weights and those of the policy."
            )
        return found.double()

    def _run_batch(self, run: Run, prefix: DensePrefix, tokens: torch.Tensor, controller: Controller) -> RunResult:
        wanted = run.targets.repeat(len(tokens), 1).to(tokens.device)
        processors = run.processors(len(tokens), StepSettings.of(self.model))
        rollouts = roll_out(self.model, prefix, tokens, wanted, controller, processors)
        shape = (len(tokens), len(run.targets), self.steps)
        return RunResult(
            -rollouts.label_logprobs.view(shape).mean(dim=-1).cpu(),
            rollouts.divergence.view(shape).mean(dim=-1).cpu(),
            rollouts.actions.view(shape).cpu(),
        )

    def dense_losses(self, name: str = "") -> torch.Tensor:
        """Mean loss in nats per token of the base itself, of shape `(blocks,)`."""
        losses = torch.zeros(len(self.tokens))
        for _, tokens, some in self.batches(name):
            logprobs = prefill(self.model, tokens, self.context_length, dense=True).logprobs
            assert logprobs is not None, "computed with `dense`"
            found = -logprobs.gather(2, tokens[:, self.context_length + 1 :, None]).mean(dim=(1, 2)).cpu()
            losses[some] = found[: some.stop - some.start]
        return self._finite(self.gather(losses))


@contextmanager
def without_dropout(module: torch.nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode, and restore the mode of each of its parts afterwards."""
    was = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in was.items():
            part.training = training


def check_blocks(model: SOLForCausalLM, blocks: torch.Tensor, context_length: int, batch_size: int) -> torch.Tensor:
    """Check blocks, and return a mask of the controllable steps of an episode, `(steps,)`.

    Args:
        model ([`SOLForCausalLM`]): Its config has the length of an episode and the selection rule.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + episode_length + 1)`): Token ids.
        context_length (`int`): Tokens before the first step.
        batch_size (`int`): Blocks that run at the same time.

    Raises:
        ValueError: if there are less than 2 blocks, blocks of another length, or no controllable step.
    """
    episode = model.config.episode_length
    if len(blocks) < 2:
        raise ValueError(f"A standard error needs 2 blocks or more, got {len(blocks)}: give more text.")
    if context_length < 1 or batch_size < 1:
        raise ValueError(f"`context_length` ({context_length}) and `batch_size` ({batch_size}) must be at least 1.")
    if blocks.dim() != 2 or blocks.shape[1] != context_length + episode + 1:
        raise ValueError(
            f"Blocks of shape {tuple(blocks.shape)} do not fit: with a context of {context_length} tokens and "
            f"episodes of {episode} steps, a block has {context_length + episode + 1} tokens. See `pack_blocks`."
        )
    rule = model.config.selection_rule
    rule.refuse_short_text(context_length)
    counted = rule.is_controllable(torch.arange(context_length + 1, context_length + episode + 1))
    if not bool(counted.any()):
        raise ValueError(
            f"After a context of {context_length} tokens no step of an episode is controllable (it would have to see "
            f"more than {rule.sink_tokens + rule.window_tokens + 1} keys): raise `context_length`."
        )
    return counted
