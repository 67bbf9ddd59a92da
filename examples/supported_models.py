# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Try tiny random models of all causal-LM families of the installed transformers, and write what was found.

    python examples/supported_models.py --out results --page docs/supported_models.md

Families with a result in the folder are left out, so the command goes on where it was interrupted. All of them take a
few minutes on one core. With `--shard 0/4` it tries every fourth family; `--families llama mixtral` tries a few.
"""

import argparse
from pathlib import Path

from sol_hf.evaluation.families.page import write_page
from sol_hf.evaluation.families.sweep import ALL_FAMILIES, MOST_SECONDS, read_results, sweep


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results, one JSON file a family")
    parser.add_argument("--page", type=Path, help="page whose generated part is replaced")
    parser.add_argument("--families", nargs="+", default=list(ALL_FAMILIES), help="model types; all by default")
    parser.add_argument("--shard", default="0/1", help="which part of the families, as NUMBER/PARTS")
    parser.add_argument("--most_seconds", type=float, default=MOST_SECONDS, help="time for one family")
    options = parser.parse_args()
    unknown = sorted(set(options.families) - set(ALL_FAMILIES))
    if unknown:
        parser.error(f"transformers has no causal-LM family {', '.join(unknown)}: choose model types.")
    number, parts = map(int, options.shard.split("/"))
    for result in sweep(options.out, options.families[number::parts], options.most_seconds):
        axes = ", ".join(result.get("axes", ())) or result.get("reason", "no axis")
        faults = f"  FAULTS: {'; '.join(result['faults'])}" if result.get("faults") else ""
        print(f"{result['family']:<28}{result['status']:<14}{axes}{faults}", flush=True)
    if options.page is not None:
        write_page(options.page, read_results(options.out))
        print(f"wrote {options.page}")


if __name__ == "__main__":
    main()
