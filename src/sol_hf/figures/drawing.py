# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Figures as files: those of a sweep's folder, of a text coloured by compute, of the decay of KV pollution."""

import json
from collections.abc import Sequence
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ..controllers.names import make_controller
from ..evaluation.kv_pollution import ImpulseResponse
from ..evaluation.sweep.table import read_table
from ..modeling_sol import SOLForCausalLM
from .action_map import map_actions, render_action_map
from .action_map_figure import plot_action_map
from .bytes_front import plot_bytes_front
from .kv_pollution_figure import plot_impulse_responses
from .style import save_figure
from .sweep_figures import plot_pareto, plot_random_search, plot_realised


def draw_sweep(folder: Path, out: Path) -> list[Path]:
    """Figures of a sweep; that of the random schedules only if the sweep has some."""
    rows, blocks, trials = (list(read_table(folder, name)) for name in ("sweep", "blocks", "trials"))
    files = save_figure(plot_pareto(rows, blocks), out / "pareto")
    files += save_figure(plot_realised(rows), out / "realised")
    return files + (save_figure(plot_random_search(rows, trials), out / "random_search") if trials else [])


def draw_bytes_front(folders: dict[str, Path], out: Path) -> list[Path]:
    """What several sweeps lose at which bytes, by the names of their action spaces."""
    return save_figure(
        plot_bytes_front({name: read_table(x, "sweep") for name, x in folders.items()}), out / "bytes_front"
    )


def draw_action_map(
    model: SOLForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    budget: Sequence[float],
    controller: str,
    out: Path,
) -> list[Path]:
    """The map of a text, as figure and as page.

    Args:
        model ([`SOLForCausalLM`]): The model.
        tokenizer (`PreTrainedTokenizerBase`): Of the base.
        text (`str`): The text to read under the budget.
        budget (`Sequence[float]`): One target per axis.
        controller (`str`): Name of a registered controller.
        out (`Path`): Folder for the files.
    """
    found = map_actions(model, tokenizer, text, budget, controller=make_controller(controller, model), name=controller)
    files, page = save_figure(plot_action_map(found), out / "action_map"), out / "action_map.html"
    page.write_text(render_action_map(found), encoding="utf-8")
    return [*files, page]


def draw_pollution(responses: Sequence[ImpulseResponse], out: Path) -> list[Path]:
    """Impulse responses as a figure, and their numbers as JSON."""
    files, numbers = save_figure(plot_impulse_responses(responses), out / "kv_pollution"), out / "kv_pollution.json"
    numbers.write_text(json.dumps([row for x in responses for row in x.to_rows()], indent=1), encoding="utf-8")
    return [*files, numbers]
