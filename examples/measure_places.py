# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Measures what levels cost at every place of a page, for the controller `fixed:place`, which needs no policy.

    python examples/measure_places.py policy train.jsonl.gz --base smollm2-135m --blocks 16 --save

The texts should be others than those of an evaluation. The table goes into the config of the policy with `--save`, or
into a file with `--json`. A criterion that chooses single tokens, such as `sketch`, has no special place.
"""

import argparse
import sys
from pathlib import Path

from sol_hf.budget.place_costs import PlaceCosts
from sol_hf.cli.inputs import add_input_arguments, load_policy_and_texts
from sol_hf.controllers.place import depends_on_place
from sol_hf.episodes.stored_files import read_json, write_json
from sol_hf.evaluation.places import measure_places


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", help="folder of a policy; its base and its levels are measured")
    parser.add_argument("texts", help="texts: .jsonl, .txt, .csv, also .gz; .parquet")
    add_input_arguments(parser, blocks=16)
    parser.add_argument("--save", action="store_true", help="write the table into the config of the policy")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table here")
    options = parser.parse_args(arguments)
    if options.save and not Path(options.policy, "config.json").is_file():
        parser.error(f"--save writes into the folder of a policy, and {options.policy} is none")
    return options


def main(arguments: list[str] | None = None) -> PlaceCosts:
    """Prints the mean cost of every place, and returns the table."""
    options = parse(arguments)
    model, texts = load_policy_and_texts(options)
    if not depends_on_place(model):
        raise SystemExit(f"`{model.config.criterion}` chooses single tokens: `fixed:place` is the fixed schedule.")
    costs = measure_places(model, texts.tokens, texts.contexts, options.batch_size)
    for axis, table in costs.costs.items():
        means = ", ".join(f"{sum(row) / len(row):.4f}" for row in table)
        sys.stdout.write(f"{axis}: mean KL of its levels by place {means}\n")
    if options.json is not None:
        write_json(options.json, costs.to_json())
    if options.save:
        path = Path(options.policy, "config.json")
        write_json(path, read_json(path, "save the policy again") | {"place_costs": costs.to_json()})
    return costs


if __name__ == "__main__":
    main()
