# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A sweep: a [`Contest`] of controllers at many budgets, for the front of quality against compute, kept in a folder.

    folder/parts      finished parts, so that a stopped sweep continues
           sweep, blocks, trials    its tables

The cost of the KV refresh is counted in the tables.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from ...costs.compute_costs import ComputeCosts
from ...modeling_sol import SOLForCausalLM
from .contest import Contest, SweepConfig
from .folder import SweepFolder, describe
from .method import Part, Tensors
from .rows import SweepRow
from .table import make_table, write_table


__all__ = ["PUBLISHED_GRID", "Sweep", "SweepConfig"]

PUBLISHED_GRID: tuple[tuple[float, float, float], ...] = tuple(
    product(
        [percent / 100 for percent in range(15, 100, 10)],
        [percent / 100 for percent in range(40, 101, 10)],
        range(5, 14),
    )
)
"""The 567 budgets of the published axes (token_keep, mlp_keep, bits) in the paper's sweep."""


class Sweep(Contest):
    """Runs a grid of controllers, budgets and seeds, and keeps finished parts in a folder.

    Args:
        model ([`SOLForCausalLM`]): Base and policy.
        blocks (`torch.LongTensor` of shape `(blocks, longest context + steps + 1)`): See [`Contest`].
        config ([`SweepConfig`]): Settings of the sweep.
        folder (`str` or `Path`): Folder for parts and tables. Parts of this sweep that it already contains are not run
            again.
        progress (`bool`, *optional*, defaults to `False`): Show a progress bar with the time left.
        documents (`Sequence[int]`, *optional*): The document of every block, see [`Contest`].

    Raises:
        ValueError: as [`Contest`].
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
        super().__init__(model, blocks, config, progress, documents)
        if self.state.is_main_process:
            enforced = {"hard": self._enforced()}
            self.folder = SweepFolder(Path(folder), describe(model, blocks) | asdict(config) | enforced)

    def run(self) -> Dataset:
        """Run all parts that are not in the folder yet, and write the tables.

        Returns:
            `Dataset`: The table `sweep`, in every process.

        Raises:
            SweepError: if another process runs a sweep in the folder.
        """
        with self._in_use():
            rows, trials = [], []
            for played, result in self.play():
                rows += played
                trials += self._trials(played[0], result)
            return self._write(rows, trials)

    def rows(self) -> list[SweepRow]:
        with self._in_use():
            return super().rows()

    def _in_use(self) -> AbstractContextManager:
        return self.folder.in_use() if self.state.is_main_process else nullcontext()

    def _enforced(self) -> bool | str:
        """What budgets are enforced over, for the settings of the folder: `True` is every episode, as it once was."""
        horizon = self.config.budget_horizon or self.settings.budget_horizon
        return horizon if self.config.hard and horizon != "episode" else self.config.hard

    def _result(self, part: Part) -> Tensors:
        """The result of a part with its duration `seconds`; from the folder if it contains the part."""
        found = self._share(self.folder.load(part.name, self.blocks) if self.state.is_main_process else None)
        if found is not None:
            self.progress.skip(part.episodes)
            return found
        found = super()._result(part)
        if self.state.is_main_process:
            self.folder.store(part.name, found)
        return found

    def _share(self, value: Any) -> Any:
        """Send the main process's value to all processes."""
        return value if self.state.num_processes == 1 else broadcast_object_list([value])[0]

    def _trials(self, row: SweepRow, result: Tensors) -> list[dict[str, Any]]:
        """The rows of the table `trials`: of a method that tries several schedules, the loss of each."""
        if "trials" not in result:
            return []
        return [row.key | {"trial": trial, "log_perplexity": x} for trial, x in enumerate(result["trials"].tolist())]

    def _write(self, rows: Sequence[SweepRow], trials: Sequence[dict[str, Any]]) -> Dataset:
        how = self.settings.bits_backend, self.settings.kv_refresh
        length, contexts = self.model.config.episode_length, self.runner.contexts
        middle = round(sum(contexts) / len(contexts)) + max(0, self.runner.steps - length) // 2
        costs, axes = ComputeCosts.of(self.model, middle, *how), self.space.axis_names
        table = make_table("sweep", self._share([row.sweep_row(costs, length) for row in rows]), axes)
        if self.state.is_main_process:
            path, blocks = self.folder.path, [row.block_row() for row in rows]
            write_table(make_table("trials", trials, axes), path / "trials.parquet")
            write_table(make_table("blocks", blocks, axes), path / "blocks.parquet")
            write_table(table, path / "sweep.csv")
            write_table(table, path / "sweep.parquet")
        self.state.wait_for_everyone()
        return table
