# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep: controllers at many budgets on the same text, for the front of quality against compute.

    policy      at the budgets of a grid              ->  what it really spends ("realised")
    all others  at what the policy spent              ->  rows to compare it with, at equal cost

Without the policy, all others are played at the budgets themselves. An episode is played on every block of the text,
teacher-forced, over a dense prefill; there is no KV refresh within one, its cost is counted nevertheless.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ...budget.action_space import AXES, AXIS_SCALE, DENSE
from ...episodes.block_runner import BlockPlayer, check_blocks, without_dropout
from ...modeling_sol import SOLForCausalLM
from ..compute_costs import ComputeCosts
from ..policy_evaluation import check_budgets
from .entries import Contestant, parse_contestants
from .folder import SweepFolder, describe
from .progress import SweepProgress
from .rows import Cell
from .runs import SweepPlayer, Tensors
from .table import make_table, write_table


PUBLISHED_GRID: tuple[tuple[float, float, float], ...] = tuple(
    product(
        [percent / 100 for percent in range(15, 100, 10)],
        [percent / 100 for percent in range(40, 101, 10)],
        range(5, 14),
    )
)
"""The 567 budgets (token_keep, mlp_keep, bits) of the paper's sweep."""


@dataclass(frozen=True)
class SweepConfig:
    """What a sweep plays.

    Args:
        controllers (`tuple[str, ...]`): Names, see [`Contestant`]. The base itself is always there, as `dense`.
        budgets (`tuple` of triples): (token_keep, mlp_keep, bits), in these units.
        context_length (`int`): Tokens of a block before its episode.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0,)`): Of controllers that draw; the others run once.
        hard (`bool`, *optional*, defaults to `False`): Hold the policy to its budgets, as `generate` does by default.
        batch_size (`int`, *optional*, defaults to 8): Blocks that run at the same time.
        schedules_at_once (`int`, *optional*, defaults to 16): Budgets or random schedules of a block that run at the
            same time.
    """

    controllers: tuple[str, ...]
    budgets: tuple[tuple[float, ...], ...]
    context_length: int
    seeds: tuple[int, ...] = (0,)
    hard: bool = False
    batch_size: int = 8
    schedules_at_once: int = 16

    def __post_init__(self):
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"`seeds` must be different numbers, at least one, got {list(self.seeds)}.")
        if self.schedules_at_once < 1:
            raise ValueError(f"`schedules_at_once` must be at least 1, got {self.schedules_at_once}.")
        if len(set(self.budgets)) != len(self.budgets):
            raise ValueError("A budget is named twice.")


class Sweep:
    """Plays a grid of controllers, budgets and seeds, and keeps what is done in a folder.

    Processes of an `accelerate launch` share the blocks; the tables are those of one process.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + episode_length + 1)`): Token ids, the same in
            every process; at least 2 blocks.
        config ([`SweepConfig`]): What to play.
        folder (`str` or `Path`): Where parts and tables go. What it already holds of this sweep is not done again.
        progress (`bool`, *optional*, defaults to `False`): Show a bar with the time that is left.

    Raises:
        ValueError: for an unknown controller, a budget below the smallest level, blocks of another length, or no
            controllable step.
        SweepError: if the folder belongs to another sweep.
    """

    def __init__(
        self,
        model: SOLForCausalLM,
        blocks: torch.Tensor,
        config: SweepConfig,
        folder: str | Path,
        progress: bool = False,
    ):
        self.contestants = parse_contestants(config.controllers)
        check_budgets(config.budgets, model.action_space)
        self.targets = torch.tensor(config.budgets, dtype=torch.float64) / torch.tensor(AXIS_SCALE)
        self.counted = check_blocks(model, blocks, config.context_length, config.batch_size)
        self.model, self.config, self.space = model, config, model.action_space
        self.state = PartialState()
        if self.state.is_main_process:
            self.folder = SweepFolder(Path(folder), describe(model, blocks) | asdict(config))
        self.player = BlockPlayer(model, blocks, config.context_length, config.batch_size, advance=self._advance)
        self.contest = SweepPlayer(self.player, self.counted, config.hard, config.schedules_at_once)
        self.progress = SweepProgress(self._work(), progress and self.state.is_main_process)

    def run(self) -> Dataset:
        """Play what is not in the folder yet, and write the tables.

        Returns:
            `Dataset`: The table `sweep`, in every process.
        """
        cells, trials = [self._dense()], []
        for look_ahead in self._looks_ahead():
            measure = partial(self.contest.measure, look_ahead)
            work = self.contest.work_ahead(look_ahead)
            self.contest.learn(look_ahead, self._part(f"costs-{look_ahead}", work, measure))
        with without_dropout(self.model.policy):
            for begin in range(0, len(self.targets), self.config.schedules_at_once):
                some = slice(begin, begin + self.config.schedules_at_once)
                targets = self.targets[some]
                for contestant, seed in self._runs():
                    for played, number, wanted in self._play(contestant, seed, begin, targets):
                        cells += self._cells(contestant, seed, number, wanted, played)
                        trials += self._trials(contestant, seed, number, played)
                    if contestant.name == "policy":
                        targets = torch.stack(
                            [cell.realised(self.counted, self.space) for cell in cells[-len(targets) :]]
                        )
        self.progress.close()
        return self._write(cells, trials)

    def _runs(self) -> list[tuple[Contestant, int]]:
        """Contestants with their seeds, the policy first."""
        seeds = self.config.seeds
        return [
            (contestant, seed) for contestant in self.contestants for seed in seeds[: None if contestant.draws else 1]
        ]

    def _looks_ahead(self) -> list[int]:
        return [contestant.number for contestant in self.contestants if contestant.name == "oracle"]

    def _dense(self) -> Cell:
        """The base itself."""
        found = self._part("dense", len(self.player.tokens), lambda: {"losses": self.player.dense_losses()})
        losses, seconds = found["losses"], float(found["seconds"])
        actions = torch.full((len(losses), self.player.steps), self.space.dense_id)
        return Cell("dense", self.config.seeds[0], DENSE, torch.ones(3), losses, losses * 0, actions, seconds)

    def _play(
        self, contestant: Contestant, seed: int, begin: int, targets: torch.Tensor
    ) -> Iterator[tuple[Tensors, int, torch.Tensor]]:
        """What a contestant does at `targets` `(budgets, 3)`, part by part, with the index of the part's first budget
        and the part's targets."""
        name, work = f"{str(contestant).replace(':', '-')}-{seed}", self.contest.work(contestant)
        if contestant.draws:
            for number, mean in enumerate(targets, start=begin):
                draw = partial(self.contest.play_random, contestant.number, mean, seed * 1_000_003 + number)
                yield self._part(f"{name}-{number:05d}", work, draw), number, mean[None]
        else:
            play = partial(self.contest.play, contestant, targets)
            yield self._part(f"{name}-{begin:05d}", work * len(targets), play), begin, targets

    def _part(self, name: str, work: int, make: Callable[[], Tensors]) -> Tensors:
        """A part out of the folder, or a new one that is put there, with the `seconds` that it took."""
        before = self.progress.done
        found = self._share(self.folder.load(name) if self.state.is_main_process else None)
        if found is None:
            start = time.perf_counter()
            found = make()
            found["seconds"] = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            if self.state.is_main_process:
                self.folder.store(name, found)
            self.progress.advance(before + work - self.progress.done)
        else:
            self.progress.skip(work)
        return found

    def _share(self, value: Any) -> Any:
        """The main process's value, in every process."""
        return value if self.state.num_processes == 1 else broadcast_object_list([value])[0]

    def _advance(self, episodes: int) -> None:
        self.progress.advance(episodes * self.state.num_processes)

    def _work(self) -> int:
        """Episodes to play in all."""
        played = sum(self.contest.work(contestant) for contestant, _ in self._runs()) * len(self.targets)
        return len(self.player.tokens) + played + sum(map(self.contest.work_ahead, self._looks_ahead()))

    def _cells(
        self, contestant: Contestant, seed: int, first: int, targets: torch.Tensor, played: Tensors
    ) -> list[Cell]:
        return [
            Cell(
                controller=str(contestant),
                seed=seed,
                budget=self.config.budgets[first + column],
                target=target,
                losses=played["losses"][:, column],
                divergence=played["divergence"][:, column],
                actions=played["actions"][:, column].long(),
                seconds=float(played["seconds"]) / len(targets),
            )
            for column, target in enumerate(targets)
        ]

    def _trials(self, contestant: Contestant, seed: int, number: int, played: Tensors) -> list[dict[str, Any]]:
        if not contestant.draws:
            return []
        budget = zip(AXES, map(float, self.config.budgets[number]), strict=True)
        key = {"controller": str(contestant), "seed": seed} | dict(budget)
        return [key | {"trial": trial, "log_perplexity": x} for trial, x in enumerate(played["trials"].tolist())]

    def _write(self, cells: Sequence[Cell], trials: Sequence[dict[str, Any]]) -> Dataset:
        costs = ComputeCosts.of(self.model, self.config.context_length)
        table = make_table("sweep", self._share([cell.sweep_row(self.space, self.counted, costs) for cell in cells]))
        if self.state.is_main_process:
            path, blocks = self.folder.path, [cell.block_row() for cell in cells]
            write_table(make_table("trials", trials), path / "trials.parquet")
            write_table(make_table("blocks", blocks), path / "blocks.parquet")
            write_table(table, path / "sweep.csv")
            write_table(table, path / "sweep.parquet")
        self.state.wait_for_everyone()
        return table
