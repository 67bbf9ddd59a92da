# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Plays every block of a text under given controllers and budgets, for all evaluations on text blocks.

    block    | context: dense, once | x x x x ... x | y        x: a decode step, scored on the next token

A [`Run`] has a controller and budgets. All runs share the prefill of a block and its dense predictions, and the
budgets of a run are rows of the same decode steps, played as `generate` decodes: see [`played_texts`]. Blocks of one
context length run together, batch by batch; the batches are divided among the processes of an `accelerate launch`. A
batch consists of the same blocks for any number of processes, so that the results are the same.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm

from ..budget.action_space import ActionSpace
from ..controllers.base import Controller
from ..controllers.processors import TOLERANCE, ActionProcessorList, budget_processors
from ..modeling_sol import SOLForCausalLM
from .played_texts import Begun, play
from .rollouts import prefill
from .step_settings import StepSettings


MOST_TOKENS = 32_768
"""Tokens of all rows that run together, about: budgets that would need more keys and values run one after another."""
MOST_KEPT_BYTES = 2**30
"""Bytes of contexts and dense predictions that are kept from one run to the next; others are computed again."""


@dataclass(frozen=True)
class Run:
    """Every block at every budget, under one controller.

    Args:
        targets (`torch.Tensor` of shape `(budgets, axes)`): In ratio units.
        controller_of (`Callable`): `controller_of(blocks, budgets)` returns the [`Controller`] for some blocks, given
            by their indices `(n,)`, and a slice of the budgets. It gets one row per block and budget; the rows of a
            block are adjacent.
        pinned (`torch.BoolTensor` of shape `(budgets, axes)`, *optional*): The axes that each budget leaves dense,
            which are held there; see [`left_dense`].
        hard (`bool`, *optional*, defaults to `False`): Rule out actions after which a budget could not be kept, over
            `horizon`.
        horizon (`str`, *optional*): One of `HORIZONS`; by default that of [`StepSettings`].
        exact (`bool`, *optional*, defaults to `False`): End at or below the target, as `generate(exact=True)`.
    """

    targets: torch.Tensor
    controller_of: Callable[[torch.Tensor, slice], Controller]
    pinned: torch.Tensor | None = None
    hard: bool = False
    horizon: str | None = None
    exact: bool = False

    def processors(self, blocks: int, budgets: slice, settings: StepSettings) -> ActionProcessorList:
        """The processors of `blocks` blocks at some of the budgets."""
        pinned, horizon = self.held[budgets].repeat(blocks, 1), self.horizon or settings.budget_horizon
        return ActionProcessorList(budget_processors(pinned, self.hard, horizon, self.exact))

    @property
    def held(self) -> torch.Tensor:
        """The axes that each budget holds at their dense level, `(budgets, axes)`."""
        return torch.zeros_like(self.targets, dtype=torch.bool) if self.pinned is None else self.pinned


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
        losses (`torch.Tensor` of shape `(blocks, budgets)`): Mean loss of a block.
        divergence (`torch.Tensor` of shape `(blocks, budgets)`): Mean KL(dense ‖ sparse); 0 if it was not computed.
        actions (`torch.LongTensor` of shape `(blocks, budgets, steps)`): Action ids.
    """

    losses: torch.Tensor
    divergence: torch.Tensor
    actions: torch.Tensor


@dataclass(frozen=True)
class Batch:
    """Blocks that run together.

    Args:
        blocks (`torch.LongTensor` of shape `(n,)`): Their indices.
        tokens (`torch.LongTensor` of shape `(n, context_length + steps + 1)`): Their tokens, on the base's device.
        context_length (`int`): Tokens of their context.
        kept (`int`): How many results count: `n`, or 0 if another process has the batch.
    """

    blocks: torch.Tensor
    tokens: torch.Tensor
    context_length: int
    kept: int


@dataclass(frozen=True)
class BlockRunner:
    """Plays blocks, batch by batch; every process plays its share.

    The processes of a sharded base have to run the base the same number of times. A process without further batches
    therefore repeats the last one and drops the result.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        tokens (`torch.LongTensor` of shape `(blocks, longest context + steps + 1)`): Token ids, the same in every
            process. A block with a shorter context ends earlier; what follows is not read.
        contexts (`Sequence[int]`): Tokens of every block before its first step.
        batch_size (`int`): Blocks that run at the same time.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar per call.
        advance (`Callable`, *optional*): `advance(blocks)` is called after every run of a batch, with the number of
            blocks times budgets that this process has just finished.
        begun (`dict`, *optional*): Batches after their context that are kept, by their blocks.
    """

    model: SOLForCausalLM
    tokens: torch.Tensor
    contexts: Sequence[int]
    batch_size: int
    progress: bool = False
    advance: Callable[[int], None] | None = None
    begun: dict[tuple[int, ...], Begun] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        """Decode steps of a block."""
        return self.tokens.shape[1] - max(self.contexts) - 1

    @property
    def space(self) -> ActionSpace:
        """The actions, with what they spend as the steps are computed."""
        return StepSettings.of(self.model).space

    def batches(self, name: str = "") -> Iterator[Batch]:
        """The batches of this process."""
        state, contexts = PartialState(), torch.tensor(list(self.contexts))
        groups = [(contexts == length).nonzero().squeeze(1) for length in contexts.unique()]
        parts = [part for group in groups for part in group.split(self.batch_size)]
        rounds = range(math.ceil(len(parts) / state.num_processes))
        for number in tqdm(rounds, desc=name, disable=not (self.progress and state.is_main_process)):
            batch = number * state.num_processes + state.process_index
            blocks = parts[min(batch, len(parts) - 1)]
            context = int(contexts[blocks[0]])
            tokens = self.tokens[blocks, : context + self.steps + 1].to(self.model.device)
            yield Batch(blocks, tokens, context, len(blocks) if batch < len(parts) else 0)

    def gather(self, found: torch.Tensor) -> torch.Tensor:
        """The sum over all processes, each of which has set the values of its own blocks."""
        return reduce(found.to(PartialState().device), "sum").cpu()

    def run(self, runs: Sequence[Run], name: str = "", divergence: bool = False) -> list[RunResult]:
        """Play all blocks.

        Args:
            runs (`Sequence[Run]`): The runs.
            name (`str`, *optional*): Title of the progress bar.
            divergence (`bool`, *optional*, defaults to `False`): Also compute KL(dense ‖ sparse).

        Returns:
            `list[RunResult]`: One per run; the same in every process.
        """
        total = len(self.tokens)
        losses = [torch.zeros(total, len(run.targets)) for run in runs]
        divergences = [torch.zeros_like(x) for x in losses]
        actions = [torch.zeros(total, len(run.targets), self.steps, dtype=torch.long) for run in runs]
        for batch in self.batches(name):
            parts = [(number, budgets) for number, run in enumerate(runs) for budgets in self._portions(batch, run)]
            controllers = [runs[number].controller_of(batch.blocks, budgets) for number, budgets in parts]
            keep_logits = any(controller.needs_logits for controller in controllers)
            begun = self._begin(batch, divergence, keep_logits)
            kept = batch.blocks[: batch.kept]
            for (number, budgets), controller in zip(parts, controllers, strict=True):
                found = self._play(runs[number], budgets, begun, controller)
                losses[number][kept, budgets] = found.losses[: batch.kept]
                divergences[number][kept, budgets] = found.divergence[: batch.kept]
                actions[number][kept, budgets] = found.actions[: batch.kept]
                if self.advance is not None:
                    self.advance(batch.kept * len(found.losses[0]))
        return [
            RunResult(self._finite(self.gather(a)), self._finite(self.gather(b)), self.gather(c))
            for a, b, c in zip(losses, divergences, actions, strict=True)
        ]

    def _begin(self, batch: Batch, dense: bool, keep_logits: bool) -> Begun:
        """A batch after its context, with the dense predictions of its steps; kept for later runs if there is room."""
        key = tuple(batch.blocks.tolist())
        known = self.begun.get(key)
        if known is None or (dense and known.dense is None) or (keep_logits and known.logits is None):
            known = Begun.of(self.model, batch.tokens, batch.context_length, dense, keep_logits)
            others = sum(begun.nbytes for other, begun in self.begun.items() if other != key)
            if others + known.nbytes <= MOST_KEPT_BYTES:
                self.begun[key] = known
        return known

    def _portions(self, batch: Batch, run: Run) -> list[slice]:
        """The budgets of a run that are rows of the same steps."""
        at_once = max(1, MOST_TOKENS // batch.tokens.numel())
        return [slice(begin, begin + at_once) for begin in range(0, len(run.targets), at_once)]

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

    def _play(self, run: Run, budgets: slice, begun: Begun, controller: Controller) -> RunResult:
        texts, wanted = len(begun.tokens), run.targets[budgets]
        processors = run.processors(texts, budgets, StepSettings.of(self.model))
        held = zip(self.space.axis_names, run.held[budgets].all(dim=0).tolist(), strict=True)
        dense_axes = frozenset(name for name, is_held in held if is_held)
        targets = wanted.repeat(texts, 1).to(begun.tokens.device)
        played = play(self.model, begun, targets, controller, processors, dense_axes)
        shape = (texts, len(wanted))
        return RunResult(
            played.losses.view(shape).cpu(),
            played.divergence.view(shape).cpu(),
            played.actions.view(*shape, -1).cpu(),
        )

    def dense_losses(self, name: str = "") -> torch.Tensor:
        """Mean loss in nats per token of the base itself, of shape `(blocks,)`."""
        losses = torch.zeros(len(self.tokens))
        for batch in self.batches(name):
            logprobs = prefill(self.model, batch.tokens, batch.context_length, dense=True).logprobs
            assert logprobs is not None, "computed with `dense`"
            found = -logprobs.gather(2, batch.tokens[:, batch.context_length + 1 :, None]).mean(dim=(1, 2)).cpu()
            losses[batch.blocks[: batch.kept]] = found[: batch.kept]
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


def contexts_of(context_length: int | Sequence[int], blocks: int) -> tuple[int, ...]:
    """The context length of every block, from one number or one per block.

    Raises:
        ValueError: if there is another number of them than of blocks.
    """
    contexts = (context_length,) * blocks if isinstance(context_length, int) else tuple(map(int, context_length))
    if len(contexts) != blocks:
        raise ValueError(f"There are {len(contexts)} context lengths for {blocks} blocks: give one per block, or one.")
    return contexts


def check_blocks(
    model: SOLForCausalLM,
    blocks: torch.Tensor,
    context_length: int | Sequence[int],
    batch_size: int,
    steps: int | None = None,
) -> torch.Tensor:
    """Check blocks, and return a mask of their controllable steps, `(blocks, steps)`.

    Args:
        model ([`SOLForCausalLM`]): Its config has the length of an episode and the selection rule.
        blocks (`torch.LongTensor` of shape `(blocks, longest context + steps + 1)`): Token ids.
        context_length (`int`, or one per block): Tokens before the first step.
        batch_size (`int`): Blocks that run at the same time.
        steps (`int`, *optional*): Steps of a block; by default any number of whole episodes.

    Raises:
        ValueError: if there are less than 2 blocks, blocks of another length, or no controllable step.
    """
    if len(blocks) < 2:
        raise ValueError(f"A standard error needs 2 blocks or more, got {len(blocks)}: give more text.")
    contexts = contexts_of(context_length, len(blocks))
    if min(contexts) < 1 or batch_size < 1:
        raise ValueError(f"`context_length` ({min(contexts)}) and `batch_size` ({batch_size}) must be at least 1.")
    episode, longest = model.config.episode_length, max(contexts)
    found = blocks.shape[-1] - longest - 1
    fits = found == steps if steps is not None else found >= 1 and found % episode == 0
    if blocks.dim() != 2 or not fits:
        more = f", and {episode} more for every further episode" if steps is None else ""
        raise ValueError(
            f"Blocks of shape {tuple(blocks.shape)} do not fit: with a context of {longest} tokens and "
            f"{f'{steps} steps' if steps else f'episodes of {episode} steps'}, a block has "
            f"{longest + (steps or episode) + 1} tokens{more}. See `pack_blocks`."
        )
    rule, seen = model.config.selection_rule, torch.tensor(contexts)[:, None] + torch.arange(1, found + 1)
    rule.refuse_short_text(min(contexts))
    counted = rule.is_controllable(seen).expand(len(blocks), -1)
    if not bool(counted.any(dim=1).all()):
        raise ValueError(
            f"After a context of {min(contexts)} tokens no step of an episode is controllable (it would have to see "
            f"more than {rule.sink_tokens + rule.window_tokens + 1} keys): raise `context_length`."
        )
    return counted
