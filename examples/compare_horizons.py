# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Prints what a policy gains over the fixed schedule in texts of several episodes, by how its budget is kept.

    python examples/compare_horizons.py policy texts.jsonl.gz --base smollm2-135m --blocks 8 --episodes 6 \
        --budgets 0.5,0.7,8 0.3,0.6,7 --ways generation episode

`generation` is the default of `generate`; `exact`, `episode` and `soft` are its other ways to keep a budget. The
distance is that of the means of a text from the targets, in ratio units. KL is KL(dense ‖ policy) in nats per token,
`fixed` that of the static schedule at what the policy spent; both have a KV refresh after every episode. `--steps 8`
measures short answers. Of the text only blocks of context, steps and one token are read.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from sol_hf.cli.arguments import add_input_arguments, at_least
from sol_hf.cli.inputs import load_policy, read_texts
from sol_hf.evaluation.horizons import WAYS, HorizonQuality, horizons_table, measure_horizons
from sol_hf.evaluation.policy_evaluation import budgets_within


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="folder or Hub id of a policy")
    parser.add_argument("texts", help="texts that the policy was not trained on")
    add_input_arguments(parser, blocks=8)
    parser.add_argument("--steps", type=at_least(1), help="of a text, instead of whole episodes")
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=["generation", "episode"])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[HorizonQuality]:
    """Prints the table and returns its data."""
    options = parse(arguments)
    model, tokenizer = load_policy(options)
    if options.bits_backend is not None:
        model.generation_config.bits_backend = options.bits_backend
    steps = options.steps or options.episodes * model.config.episode_length
    texts = read_texts(options, model, tokenizer, steps)
    budgets = options.budgets or budgets_within(model.action_space)
    results = measure_horizons(model, texts.tokens, texts.contexts, budgets, options.ways, texts.documents)
    print(horizons_table(results))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(result) for result in results], indent=2), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
