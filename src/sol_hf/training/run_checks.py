# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Whether the arguments of a run fit each other and its data; asked before anything is computed."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from datasets import IterableDataset

from .grpo_config import SOLGRPOConfig
from .metrics import EVALUATED, EVALUATED_AT_BUDGETS, at_budget


def check_run(args: SOLGRPOConfig, budgets: Sequence[Sequence[float]], train_dataset: Any, eval_dataset: Any) -> None:
    """Raise a ValueError if a run would fail, or leave out what was asked for, after it has begun.

    Args:
        args ([`SOLGRPOConfig`]): Arguments of the run.
        budgets (`Sequence[Sequence[float]]`): Budgets of its evaluations.
        train_dataset (`Dataset` or `IterableDataset`): As given to the trainer.
        eval_dataset (`Dataset`, `IterableDataset`, a `dict` of them or `None`): As given to the trainer.
    """
    local = args.per_device_train_batch_size * args.steps_per_generation
    if local % args.num_generations:
        raise ValueError(
            f"A process runs {local} rollouts at a time (`per_device_train_batch_size` * `steps_per_generation`), "
            f"which must be a multiple of `num_generations` ({args.num_generations}): the rollouts of a block share "
            "its prefix."
        )
    if isinstance(train_dataset, IterableDataset):
        by_epoch = [f"{what}_strategy" for what in ("save", "eval", "logging")]
        by_epoch = [f"`{name}`" for name in by_epoch if getattr(args, name) == "epoch"]
        if by_epoch:
            raise ValueError(f"A stream has no epochs for {', '.join(by_epoch)}: use `steps`.")
    if eval_dataset is not None:
        _check_best(args, budgets, eval_dataset)


def _check_best(args: SOLGRPOConfig, budgets: Sequence[Sequence[float]], eval_dataset: Any) -> None:
    """The metric of the best policy is one that evaluations have."""
    if args.metric_for_best_model is None or args.eval_strategy == "no":
        return
    parts = [f"{name}_" for name in eval_dataset] if isinstance(eval_dataset, dict) else [""]
    names = [*EVALUATED, *(at_budget(name, budget) for name in EVALUATED_AT_BUDGETS for budget in budgets)]
    known = {f"{part}{name}" for part in parts for name in names}
    if args.metric_for_best_model.removeprefix("eval_") not in known:
        listed = ", ".join(sorted(name for name in known if "/" not in name))
        raise ValueError(
            f"`metric_for_best_model` is {args.metric_for_best_model!r}, but an evaluation has {listed}, and some of "
            "these for each budget, as in `gain/0.5-0.7-8`."
        )


def check_controllable(rule: Any, longest: int) -> None:
    """Raise a ValueError if no step of an episode is controllable, so that there is nothing to learn.

    Args:
        rule ([`SelectionRule`]): Settings of the selection.
        longest (`int`): Tokens that the last step of an episode sees.
    """
    if not rule.is_controllable(torch.tensor(longest)):
        raise ValueError(
            f"No step of an episode can be controlled: {longest} tokens (`context_length` + `episode_length`) are not "
            f"more than `sink_tokens` + `window_tokens` + 1 = {rule.sink_tokens + rule.window_tokens + 1}. Give a "
            "longer `context_length`."
        )


def check_evaluated_blocks(dataset: Any) -> None:
    """Raise a ValueError if there are less than the two blocks of an evaluation, in any of several datasets."""
    for name, part in _datasets(dataset):
        if len(list(islice(iter(part), 2))) < 2:
            raise ValueError(
                f"The texts to evaluate on{name} have less than the 2 blocks that an evaluation needs: give more "
                "text, or shorten the blocks (`context_length`)."
            )


def _datasets(dataset: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(dataset, dict):
        yield from ((f" ({name})", part) for name, part in dataset.items())
    elif dataset is not None:
        yield "", dataset
