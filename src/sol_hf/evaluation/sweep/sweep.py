# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep: controllers at many budgets on the same text, for the front of quality against compute.

    policy      at the budgets of a grid              ->  the means that it spends ("realised")
    all others  at the means that the policy spent    ->  rows to compare it with, at equal cost

Without the policy, all others are run at the budgets themselves. One teacher-forced episode is run on every block of
the text, after a dense prefill. There is no KV refresh within an episode, but its cost is counted.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ...episodes.block_runner import BlockRunner, check_blocks, controlled_axes, without_dropout
from ...episodes.step_settings import StepSettings
from ...modeling_sol import SOLForCausalLM
from ..clusters import clusters_of
from ..compute_costs import ComputeCosts
from ..policy_evaluation import check_budgets
from .entries import POLICY, SweepEntry, parse_entries
from .folder import SweepFolder, describe
from .method import Part, SweepMethod, SweepSetting, Tensors
from .progress import SweepProgress
from .rows import SweepRow
from .table import make_table, write_table


PUBLISHED_GRID: tuple[tuple[float, float, float], ...] = tuple(
    product(
        [percent / 100 for percent in range(15, 100, 10)],
        [percent / 100 for percent in range(40, 101, 10)],
        range(5, 14),
    )
)
"""The 567 budgets of the published axes (token_keep, mlp_keep, bits) in the paper's sweep."""


@dataclass(frozen=True)
class SweepConfig:
    """Settings of a sweep.

    Args:
        controllers (`tuple[str, ...]`): Names, see [`SweepEntry`]. The base itself is always included, as `dense`.
        budgets (`tuple` of `tuple[float, ...]`): One number per axis of the action space, in axis units.
        context_length (`int`): Tokens of a block before its episode.
        seeds (`tuple[int, ...]`, *optional*, defaults to `(0,)`): Seeds of controllers with random results; all others
            run once.
        hard (`bool`, *optional*, defaults to `False`): Enforce the budgets of the policy, as `generate` does by
            default, over the `budget_horizon` of the model's generation config.
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
    """Runs a grid of controllers, budgets and seeds, and keeps finished parts in a folder.

    The blocks are divided among the processes of an `accelerate launch`; the tables do not depend on their number.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, context_length + episode_length + 1)`): Token ids, the same in
            every process; at least 2 blocks.
        config ([`SweepConfig`]): Settings of the sweep.
        folder (`str` or `Path`): Folder for parts and tables. Parts of this sweep that it already contains are not run
            again.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar with the time left.
        documents (`Sequence[int]`, *optional*): The document of every block, for standard errors and intervals: blocks
            of one document are not independent. See [`TextBlocks`].

    Raises:
        ValueError: for an unknown controller, a budget below the smallest level, blocks of another length, or no
            controllable step.
        SweepError: if the folder belongs to another sweep, holds other files, or another process runs one there.
    """

    def __init__(
        self,
        model: SOLForCausalLM,
        blocks: torch.Tensor,
        config: SweepConfig,
        folder: str | Path,
        progress: bool = False,
        documents: Sequence[int] | torch.Tensor | None = None,
    ):
        self.entries = parse_entries(config.controllers)
        self.settings = StepSettings.of(model)
        self.space = self.settings.space
        wanted = check_budgets(config.budgets, self.space)
        self.targets = torch.tensor(config.budgets, dtype=torch.float64) / self.space.scales
        self.counted = check_blocks(model, blocks, config.context_length, config.batch_size)
        self.settings.prepare(model, controlled_axes(wanted, self.space))
        self.model, self.config = model, config
        self.documents = None if documents is None else tuple(map(int, documents))
        clusters_of(self.documents, len(blocks))
        self.state = PartialState()
        self.runner = BlockRunner(model, blocks, config.context_length, config.batch_size, advance=self._advance)
        setting = SweepSetting(self.runner, self.counted, config.hard, config.schedules_at_once)
        self.blocks = len(blocks)
        self.methods = {entry: entry.start(setting) for entry in self.entries}
        if self.state.is_main_process:
            enforced = {"hard": self._enforced()}
            self.folder = SweepFolder(Path(folder), describe(model, blocks) | asdict(config) | enforced)
        self.progress = SweepProgress(self._episodes(), progress and self.state.is_main_process)

    def run(self) -> Dataset:
        """Run all parts that are not in the folder yet, and write the tables.

        Returns:
            `Dataset`: The table `sweep`, in every process.

        Raises:
            SweepError: if another process runs a sweep in the folder.
        """
        with self.folder.in_use() if self.state.is_main_process else nullcontext():
            return self._run()

    def _run(self) -> Dataset:
        rows, trials = [self._dense()], []
        for method in self.methods.values():
            if (preparation := method.preparation()) is not None:
                method.prepare(self._result(preparation))
        with without_dropout(self.model.policy):
            for begin in range(0, len(self.targets), self.config.schedules_at_once):
                targets = self.targets[begin : begin + self.config.schedules_at_once]
                for entry, seed in self._entries_and_seeds():
                    for result, number, wanted in self._run_entry(entry, seed, begin, targets):
                        rows += self._rows(entry, seed, number, wanted, result)
                        trials += self._trials(entry, seed, number, result)
                    if entry.name == POLICY:
                        targets = torch.stack([row.realised(self.counted) for row in rows[-len(targets) :]])
        self.progress.close()
        return self._write(rows, trials)

    def _enforced(self) -> bool | str:
        """What budgets are enforced over, for the settings of the folder: `True` is every episode, as it once was."""
        horizon = self.settings.budget_horizon
        return horizon if self.config.hard and horizon != "episode" else self.config.hard

    def _entries_and_seeds(self) -> list[tuple[SweepEntry, int]]:
        """Every entry with each of its seeds, the policy first."""
        seeds = self.config.seeds
        return [(entry, seed) for entry in self.entries for seed in (seeds if entry.method.draws else seeds[:1])]

    def _dense(self) -> SweepRow:
        """The row of the base itself."""
        part = Part("dense", len(self.runner.tokens), lambda: {"losses": self.runner.dense_losses()})
        found = self._result(part)
        losses, seconds = found["losses"], float(found["seconds"])
        return SweepRow(
            controller="dense",
            seed=self.config.seeds[0],
            space=self.space,
            budget=self.space.dense,
            target=torch.tensor(self.space.dense) / self.space.scales,
            losses=losses,
            divergence=losses * 0,
            actions=torch.full((len(losses), self.runner.steps), self.space.dense_id),
            seconds=seconds,
            documents=self.documents,
        )

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
        """The result of a part with its duration `seconds`; from the folder if it contains the part."""
        before = self.progress.done
        found = self._share(self.folder.load(part.name, self.blocks) if self.state.is_main_process else None)
        if found is None:
            start = time.perf_counter()
            found = part.make()
            found["seconds"] = torch.tensor(time.perf_counter() - start, dtype=torch.float64)
            if self.state.is_main_process:
                self.folder.store(part.name, found)
            self.progress.advance(before + part.episodes - self.progress.done)
        else:
            self.progress.skip(part.episodes)
        return found

    def _share(self, value: Any) -> Any:
        """Send the main process's value to all processes."""
        return value if self.state.num_processes == 1 else broadcast_object_list([value])[0]

    def _advance(self, episodes: int) -> None:
        self.progress.advance(episodes * self.state.num_processes)

    def _episodes(self) -> int:
        """Total number of episodes."""
        runs = sum(self.methods[entry].episodes for entry, _ in self._entries_and_seeds()) * len(self.targets)
        preparations = [method.preparation() for method in self.methods.values()]
        return len(self.runner.tokens) + runs + sum(part.episodes for part in preparations if part is not None)

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
                seconds=float(result["seconds"]) / len(targets),
                runs_policy=self.methods[entry].runs_policy,
                documents=self.documents,
            )
            for column, target in enumerate(targets)
        ]

    def _trials(self, entry: SweepEntry, seed: int, number: int, result: Tensors) -> list[dict[str, Any]]:
        if "trials" not in result:
            return []
        budget = zip(self.space.axis_names, map(float, self.config.budgets[number]), strict=True)
        key = {"controller": str(entry), "seed": seed} | dict(budget)
        return [key | {"trial": trial, "log_perplexity": x} for trial, x in enumerate(result["trials"].tolist())]

    def _write(self, rows: Sequence[SweepRow], trials: Sequence[dict[str, Any]]) -> Dataset:
        how = self.settings.bits_backend, self.settings.kv_refresh
        costs = ComputeCosts.of(self.model, self.config.context_length, *how)
        axes = self.space.axis_names
        table = make_table("sweep", self._share([row.sweep_row(self.counted, costs) for row in rows]), axes)
        if self.state.is_main_process:
            path, blocks = self.folder.path, [row.block_row() for row in rows]
            write_table(make_table("trials", trials, axes), path / "trials.parquet")
            write_table(make_table("blocks", blocks, axes), path / "blocks.parquet")
            write_table(table, path / "sweep.csv")
            write_table(table, path / "sweep.parquet")
        self.state.wait_for_everyone()
        return table
