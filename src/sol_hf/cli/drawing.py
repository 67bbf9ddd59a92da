# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Draws the figures of `sol-hf figures`, and writes them as files."""

import argparse
import json
from pathlib import Path

from ..controllers.names import make_controller
from ..evaluation.kv_pollution import impulse_responses
from ..evaluation.sweep.table import read_table
from ..figures.action_map import map_actions, render_action_map
from ..figures.action_map_figure import plot_action_map
from ..figures.kv_pollution_figure import plot_impulse_responses
from ..figures.style import save_figure
from ..figures.sweep_figures import plot_pareto, plot_random_search, plot_realised
from .inputs import read_blocks


def draw_sweep(folder: Path, out: Path) -> list[Path]:
    """Figures of a sweep; that of the random schedules only if the sweep has some."""
    rows, blocks, trials = (list(read_table(folder, name)) for name in ("sweep", "blocks", "trials"))
    files = save_figure(plot_pareto(rows, blocks), out / "pareto")
    files += save_figure(plot_realised(rows), out / "realised")
    return files + (save_figure(plot_random_search(rows, trials), out / "random_search") if trials else [])


def draw_action_map(options: argparse.Namespace, model, tokenizer) -> list[Path]:
    """The map of a text, as figure and as page."""
    text = options.action_map.read_text(encoding="utf-8").strip()
    controller = make_controller(options.controller, model)
    found = map_actions(model, tokenizer, text, options.budget, controller=controller, name=options.controller)
    files, page = save_figure(plot_action_map(found), options.out / "action_map"), options.out / "action_map.html"
    page.write_text(render_action_map(found), encoding="utf-8")
    return [*files, page]


def draw_pollution(options: argparse.Namespace, model, tokenizer) -> list[Path]:
    """Impulse responses with and without KV refresh, by default to the cheapest action; the figure and its numbers."""
    blocks = read_blocks(options, model, tokenizer, options.steps)
    cheapest = tuple(min(levels) for levels in model.action_space.levels.values())
    begin, length = options.disturbed
    responses = impulse_responses(
        model,
        blocks.tokens,
        options.context_length,
        options.actions or [cheapest],
        begin,
        length,
        batch_size=options.batch_size,
        progress=True,
        documents=blocks.documents,
    )
    for response in responses:
        during, after = response.aftermath
        how = "without" if response.refresh_every is None else "with"
        print(f"{response.action}, {how} refresh: KL {during:.3f} while disturbed, {after:.4f} after; ", end="")
        print(f"below a tenth after {response.lasting(0.1)} steps, below a hundredth after {response.lasting(0.01)}")
    files = save_figure(plot_impulse_responses(responses), options.out / "kv_pollution")
    numbers = options.out / "kv_pollution.json"
    numbers.write_text(json.dumps([row for x in responses for row in x.to_rows()], indent=1), encoding="utf-8")
    return [*files, numbers]
