# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Prints what settings cost without a policy: KL(dense ‖ setting), change of the loss, and bytes, on the same text.

    python examples/compare_settings.py texts.jsonl.gz --base smollm2-135m --blocks 48 \
        --set "token_keep: .2" \
        --set "token_keep: .2, anchor_pages: true" \
        --set "token_keep: .2, criterion: sketch, selection: layer"

A setting names fields of `SOLConfig`, one level per axis, and options of `generate`; every axis that it leaves out is
dense. Each block is the beginning of a text that is long enough. With several `--context-lengths` the blocks take them
in turn, for example 256 to 319 for episodes that begin at every place of a page. All figures are means over the blocks
with standard errors. `--timed-rounds 5` adds the processor time of a step, with one thread, over that of our own dense
step. `--plot` draws KL against bytes, and against time if that was measured. In seconds, without a download: `--tiny`.

With `--refresh` the command prints instead what the KV refresh is worth under each setting: KL with it, and what
leaving it out adds, over `--episodes` episodes, the first of which is left out.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf.cli.inputs import SMOLLM2
from sol_hf.episodes.stored_files import write_json
from sol_hf.episodes.text_blocks import text_beginnings
from sol_hf.evaluation.refresh_quality import RefreshQuality, measure_refresh, refresh_table
from sol_hf.evaluation.settings import SettingQuality, measure_settings, settings_table
from sol_hf.integrations.packaged_bases import base_source
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer


DEFAULTS = [
    "token_keep: .2",
    "token_keep: .2, anchor_pages: true",
    "token_keep: .2, criterion: sketch, selection: layer",
]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="?", help="texts: .jsonl, .txt, .csv, also .gz; .parquet")
    parser.add_argument("--base", default=SMOLLM2, help="folder or Hub id of a base")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--set", action="append", dest="settings", metavar="YAML", help="a setting; may be repeated")
    parser.add_argument("--blocks", type=int, default=48)
    parser.add_argument("--every", type=int, default=1, help="use every n-th text")
    parser.add_argument("--context-lengths", type=int, nargs="+", default=[256])
    parser.add_argument("--episode-length", type=int, default=16)
    parser.add_argument("--timed-rounds", type=int, default=0, metavar="N", help="time steps, too, in N rounds")
    parser.add_argument("--refresh", action="store_true", help="what the KV refresh is worth")
    parser.add_argument("--episodes", type=int, default=6, help="episodes of a block, with --refresh")
    parser.add_argument("--batch-size", type=int, default=1, help="blocks that run together, with --refresh")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="the figure, as FILE.png and FILE.svg")
    parser.add_argument("--tiny", action="store_true", help="a random model and random text")
    options = parser.parse_args(arguments)
    if not options.tiny and options.texts is None:
        parser.error("give texts, or --tiny")
    if options.refresh and options.plot is not None:
        parser.error("--plot is of the settings themselves: leave out --refresh")
    return options


def read_setting(text: str) -> dict:
    """A setting from one line of YAML."""
    setting = yaml.safe_load(f"{{{text}}}")
    if not isinstance(setting, dict) or not setting or any(value is None for value in setting.values()):
        raise SystemExit(f"A setting is written as `name: value, name: value`, got {text!r}.")
    return setting


def main(arguments: list[str] | None = None) -> list[SettingQuality] | list[RefreshQuality]:
    """Prints the table and returns its data."""
    options = parse(arguments)
    settings = [read_setting(text) for text in options.settings or DEFAULTS]
    episodes = options.episodes if options.refresh else 1
    length = max(options.context_lengths) + episodes * options.episode_length + 1
    if options.tiny:
        base = tiny_base(tiny_tokenizer())
        blocks = torch.randint(1, 99, (min(options.blocks, 4), length))
    else:
        source = base_source(options.base)
        base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype).eval()
        tokenizer = AutoTokenizer.from_pretrained(source)
        blocks = text_beginnings(options.texts, tokenizer, length, options.blocks, options.every)
    shapes = blocks, options.context_lengths
    if options.refresh:
        worth = measure_refresh(
            base, settings, *shapes, options.episodes, options.episode_length, batch_size=options.batch_size
        )
        sys.stdout.write(refresh_table(worth) + "\n")
        if options.json is not None:
            write_json(options.json, [asdict(result) for result in worth])
        return worth
    if options.timed_rounds:
        torch.set_num_threads(1)
    results = measure_settings(base, settings, *shapes, options.episode_length, timed_rounds=options.timed_rounds)
    sys.stdout.write(settings_table(results) + "\n")
    if options.json is not None:
        write_json(options.json, [asdict(result) for result in results])
    if options.plot is not None:
        from sol_hf.figures.settings_figure import plot_settings
        from sol_hf.figures.style import save_figure

        save_figure(plot_settings(results), options.plot)
    return results


if __name__ == "__main__":
    main()
