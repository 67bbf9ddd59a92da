# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A contest: controllers at many budgets on the same texts, played as `generate` decodes.

    policy      at given budgets                      ->  the means that it spends ("realised")
    all others  at the means that the policy spent    ->  rows to compare it with, at equal cost

Without the policy, all others are run at the budgets themselves. A text is a context, processed densely, and
teacher-forced episodes with a KV refresh between them. All evaluations of budgets are contests: [`evaluate_budgets`],
[`measure_horizons`], and sweeps, which keep their results in a folder.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from accelerate import PartialState

from ...budget.bank import HORIZONS
from ...episodes.block_runner import BlockRunner, check_blocks, contexts_of, controlled_axes, without_dropout
from ...episodes.step_settings import StepSettings
from ...modeling_sol import SOLForCausalLM
from ..budget_targets import check_budgets
from ..clusters import clusters_of
from .entries import POLICY, SweepEntry, parse_entries
from .method import Part, SweepMethod, SweepSetting, Tensors
from .progress import SweepProgress
from .rows import SweepRow


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep, and of any other contest.

    Args:
        controllers (`tuple[str, ...]`): Names, see [`SweepEntry`]. The base itself is always included, as `dense`.
        budgets (`tuple` of `tuple[float, ...]`): One number per axis of the action space, in axis units.
        context_length (`int`, or one per block): Tokens of a block before its first step.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0,)`): Seeds of controllers with random results; all others
            run once.
        hard (`bool`, *optional*, defaults to `False`): Enforce the budgets of the policy, as `generate` does by
            default, over the `budget_horizon` of the model's generation config.
        batch_size (`int`, *optional*, defaults to 8): Blocks that run at the same time.
        schedules_at_once (`int`, *optional*, defaults to 16): Budgets or random schedules of a block that run at the
            same time.
        budget_horizon (`str`, *optional*): Over what hard budgets are kept, one of `HORIZONS`, if not over that of the
            model's generation config.
        exact (`bool`, *optional*, defaults to `False`): Hard budgets over a generation end at or below their target.
        steps (`int`, *optional*): Decode steps of a block; by default any number of whole episodes.
    """

    controllers: tuple[str, ...]
    budgets: tuple[tuple[float, ...], ...]
    context_length: int | tuple[int, ...]
    seeds: tuple[int, ...] = (0,)
    hard: bool = False
    batch_size: int = 8
    schedules_at_once: int = 16
    budget_horizon: str | None = None
    exact: bool = False
    steps: int | None = None

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"`seeds` must be different numbers, at least one, got {list(self.seeds)}.")
        if self.schedules_at_once < 1:
            raise ValueError(f"`schedules_at_once` must be at least 1, got {self.schedules_at_once}.")
        if len(set(self.budgets)) != len(self.budgets):
            raise ValueError("A budget is named twice.")
        if self.budget_horizon not in (None, *HORIZONS):
            raise ValueError(f"`budget_horizon` must be one of {', '.join(HORIZONS)}, got {self.budget_horizon!r}.")


class Contest:
    """Plays controllers, budgets and seeds on the same texts.

    The blocks are divided among the processes of an `accelerate launch`; the rows do not depend on their number.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, longest context + steps + 1)`): Token ids, the same in every
            process; at least 2 blocks. A block with a shorter context ends earlier.
        config ([`SweepConfig`]): Settings.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar with the time left.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors and intervals: blocks
            of one document are not independent. See [`TextBlocks`].

    Raises:
        ValueError: for an unknown controller, a budget below the smallest level, blocks of another length, or no
            controllable step.
    """

    def __init__(
        self,
        model: SOLForCausalLM,
        blocks: torch.Tensor,
        config: SweepConfig,
        progress: bool = False,
        documents: Sequence[int] | torch.Tensor | None = None,
    ):
        self.entries = parse_entries(config.controllers)
        self.settings = StepSettings.of(model)
        self.space = self.settings.space
        wanted = check_budgets(config.budgets, self.space)
        self.targets = torch.tensor(config.budgets, dtype=torch.float64) / self.space.scales
        self.counted = check_blocks(model, blocks, config.context_length, config.batch_size, config.steps)
        self.settings.prepare(model, controlled_axes(wanted, self.space))
        self.model, self.config = model, config
        self.documents = None if documents is None else tuple(map(int, documents))
        clusters_of(self.documents, len(blocks))
        self.state, self.blocks = PartialState(), len(blocks)
        contexts = contexts_of(config.context_length, len(blocks))
        self.runner = BlockRunner(model, blocks, contexts, config.batch_size, advance=self._advance)
        how = config.budget_horizon, config.exact
        setting = SweepSetting(self.runner, self.counted, config.hard, config.schedules_at_once, *how)
        self.methods = {entry: entry.start(setting) for entry in self.entries}
        self.progress = SweepProgress(self._plays(), progress and self.state.is_main_process)
        self._found: dict[str, Tensors] = {}
        """Preparations, which several methods may share."""

    def play(self) -> Iterator[tuple[list[SweepRow], Tensors]]:
        """Play everything, part by part: the rows of a part, and its tensors. The first is the base itself."""
        yield self._dense()
        for method in self.methods.values():
            if (preparation := method.preparation()) is not None:
                if preparation.name not in self._found:
                    self._found[preparation.name] = self._result(preparation)
                method.prepare(self._found[preparation.name])
        with without_dropout(self.model.policy):
            for begin in range(0, len(self.targets), self.config.schedules_at_once):
                targets = self.targets[begin : begin + self.config.schedules_at_once]
                for entry, seed in self._entries_and_seeds():
                    played = []
                    for result, number, wanted in self._run_entry(entry, seed, begin, targets):
                        rows = self._rows(entry, seed, number, wanted, result)
                        played += rows
                        yield rows, result
                    if entry.name == POLICY:
                        targets = torch.stack([row.realised for row in played])
        self.progress.close()

    def rows(self) -> list[SweepRow]:
        """Play everything; one row per controller, budget and seed, the base itself first."""
        return [row for rows, _ in self.play() for row in rows]

    def _entries_and_seeds(self) -> list[tuple[SweepEntry, int]]:
        """Every entry with each of its seeds, the policy first."""
        seeds = self.config.seeds
        return [(entry, seed) for entry in self.entries for seed in (seeds if entry.method.draws else seeds[:1])]

    def _dense(self) -> tuple[list[SweepRow], Tensors]:
        """The row of the base itself."""
        found = self._result(Part("dense", self.blocks, lambda: {"losses": self.runner.dense_losses()}))
        losses, actions = found["losses"], torch.full(self.counted.shape, self.space.dense_id)
        row = SweepRow(
            controller="dense",
            seed=self.config.seeds[0],
            space=self.space,
            budget=self.space.dense,
            target=torch.tensor(self.space.dense) / self.space.scales,
            losses=losses,
            divergence=losses * 0,
            actions=actions,
            counted=self.counted,
            seconds=float(found["seconds"]),
            documents=self.documents,
        )
        return [row], found

    def _run_entry(
        self, entry: SweepEntry, seed: int, begin: int, targets: torch.Tensor
    ) -> Iterator[tuple[Tensors, int, torch.Tensor]]:
        """Results of an entry at `targets` `(budgets, axes)`, part by part, each with the index of its first budget
        and its targets."""
        method = self.methods[entry]
        for number, wanted, draw in self._portions(method, seed, begin, targets):
            name = f"{str(entry).replace(':', '-')}-{seed}-{number:05d}"
            part = Part(name, method.episodes * len(wanted), partial(method.run, wanted, draw))
            yield self._result(part), number, wanted

    def _portions(
        self, method: SweepMethod, seed: int, begin: int, targets: torch.Tensor
    ) -> list[tuple[int, torch.Tensor, int]]:
        """Portions of budgets that are run together: index of the first budget, targets and seed of each."""
        if not method.draws:
            return [(begin, targets, seed)]
        return [(begin + i, target[None], seed * 1_000_003 + begin + i) for i, target in enumerate(targets)]

    def _result(self, part: Part) -> Tensors:
        """The result of a part with its duration `seconds`."""
        before, start = self.progress.done, time.perf_counter()
        found = part.make()
        found["seconds"] = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
        self.progress.advance(before + part.episodes - self.progress.done)
        return found

    def _advance(self, episodes: int) -> None:
        self.progress.advance(episodes * self.state.num_processes)

    def _plays(self) -> int:
        """Total number of blocks to play."""
        runs = sum(self.methods[entry].episodes for entry, _ in self._entries_and_seeds()) * len(self.targets)
        preparations = [method.preparation() for method in self.methods.values()]
        named = {part.name: part.episodes for part in preparations if part is not None}
        return self.blocks + runs + sum(named.values())

    def _rows(
        self, entry: SweepEntry, seed: int, first: int, targets: torch.Tensor, result: Tensors
    ) -> list[SweepRow]:
        return [
            SweepRow(
                controller=str(entry),
                seed=seed,
                space=self.space,
                budget=self.config.budgets[first + column],
                target=target,
                losses=result["losses"][:, column],
                divergence=result["divergence"][:, column],
                actions=result["actions"][:, column].long(),
                counted=self.counted,
                seconds=float(result["seconds"]) / len(targets),
                runs_policy=self.methods[entry].runs_policy,
                documents=self.documents,
            )
            for column, target in enumerate(targets)
        ]
