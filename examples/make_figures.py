# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Draws figures as PNG and SVG: those of a sweep, a text coloured by compute, the decay of KV pollution.

    python examples/make_figures.py runs/pareto --out docs/pictures
    python examples/make_figures.py --action-map examples/texts/tide.txt --out docs/pictures
    python examples/make_figures.py --pollution texts.jsonl.gz --blocks 32 --out docs/pictures

sweep folder   pareto, realised and random_search, from its tables; needs no model
--action-map   action_map, also as .html with the action of every token
--pollution    kv_pollution, and its numbers as .json

All of them can be drawn in one call. The last two use SmolLM2-135M-Instruct and the policy that is shipped for it,
unless `--policy` and `--base` are given.
"""

import sys
from pathlib import Path

from sol_hf.cli import figures
from sol_hf.integrations.smollm2 import SMOLLM2


SHIPPED_POLICY = Path(__file__).parents[1] / "model_cards" / "sol-smollm2-135m"


def main(arguments: list[str]) -> list[Path]:
    """Draws the requested figures, of the shipped policy unless another is given; returns the files."""
    if "--policy" not in arguments:
        arguments = [*arguments, "--policy", str(SHIPPED_POLICY)]
        arguments += [] if "--base" in arguments else ["--base", SMOLLM2]
    return figures.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
