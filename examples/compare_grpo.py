# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Trains a start further by two recipes for the same time, and prints what each has gained, in the mode of `generate`.

    python examples/compare_grpo.py examples/configs/smollm2-135m-constraint.yaml train.jsonl.gz valid.jsonl.gz \
        --minutes 20 --seeds 0 1 --out arms --budgets 0.2,0.9,6,0.8 0.3,1,8,1

start         what the configuration gives with `max_steps: 0`
published     the start, then GRPO with the published hyperparameters, on the budgets of the configuration
constraint    the start, then GRPO as the configuration says: under the budget that `generate` keeps

Time is processor time of GRPO alone; the start is made once. KL is KL(dense ‖ policy) in nats per token on texts of
six episodes, the gain that of the fixed schedule at what the policy spent, minus it. Differences are paired by text,
errors are over documents. Runs in the folder are not repeated. Further options are passed to `train_grpo.py`.
"""

import argparse
from pathlib import Path

import numpy as np

from grpo_arms import ARMS, train
from sol_hf.budget.budget import Budget
from sol_hf.cli.arguments import add_input_arguments
from sol_hf.cli.inputs import load_policy, read_blocks
from sol_hf.controllers.fixed import FixedController
from sol_hf.episodes.stored_files import write_json
from sol_hf.evaluation.clusters import mean_and_error
from sol_hf.evaluation.policy_evaluation import budgets_within
from sol_hf.evaluation.settings import compare_scores


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("config", help="configuration of train_grpo.py")
    parser.add_argument("train_file", help="texts to train on")
    parser.add_argument("texts", help="texts to evaluate on")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of the figures")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--minutes", type=float, default=20, help="processor time of GRPO in a run")
    add_input_arguments(parser, blocks=12)
    options, options.others = parser.parse_known_args(arguments)
    if len(options.context_length) > 1:
        parser.error("the arms are compared after one --context-length")
    (options.context_length,) = options.context_length
    return options


def play(options: argparse.Namespace, folder: Path) -> dict:
    """KL of a policy and of the fixed schedule at what it spent, by budget and text, `(budgets, texts)` each."""
    options.policy = folder
    model, tokenizer = load_policy(options)
    blocks = read_blocks(options, model, tokenizer, 6 * model.config.episode_length, options.skip_blocks)
    score = dict(context_length=options.context_length, return_logits=True)
    dense, axes, found = model.score(blocks.tokens, **score), model.action_space.axes, []
    for numbers in options.budgets or budgets_within(model.action_space):
        asked = {axis.name: x for axis, x in zip(axes, numbers, strict=True) if x != axis.dense}
        played = model.score(blocks.tokens, budget=Budget.of(asked), **score)
        means = {axis.name: float(x) for axis, x in zip(axes, played.realised.double().mean(dim=0), strict=True)}
        spent = {axis.name: min(means[axis.name], axis.dense) for axis in axes if axis.name in asked}
        schedule = FixedController(carry=model.action_space.axis_names, across_rows=False)
        fixed = model.score(blocks.tokens, budget=Budget.of(spent), budget_mode="soft", controller=schedule, **score)
        kl, of_fixed = (compare_scores(dense, x)[..., 0].mean(dim=1).tolist() for x in (played, fixed))
        found.append({"budget": asked, "spent": means, "kl": kl, "fixed": of_fixed})
    return {"documents": blocks.documents.tolist() if blocks.documents is not None else None, "budgets": found}


def mean_over_budgets(found: dict, kind: str) -> np.ndarray:
    """KL of every text, `(texts,)`."""
    return np.mean([x[kind] for x in found["budgets"]], axis=0)


def main(arguments: list[str] | None = None) -> dict[str, dict]:
    """Trains, evaluates and prints; returns the figures of every run by its name."""
    options, figures = parse(arguments), {}
    for arm in options.arms:
        for seed in options.seeds[:1] if arm == "start" else options.seeds:
            folder = train(options, arm, seed)
            figures[folder.name] = play(options, folder)
            write_json(options.out / "arms.json", figures)
    means = {
        name: {kind: mean_over_budgets(found, kind) for kind in ("kl", "fixed")} for name, found in figures.items()
    }
    for name, of in means.items():
        columns = {"KL": of["kl"], "gain over fixed": of["fixed"] - of["kl"]}
        if "start" in means:
            columns["KL minus the start's"] = of["kl"] - means["start"]["kl"]
        pairs = {what: mean_and_error(x[:, None], figures[name]["documents"]) for what, x in columns.items()}
        print(f"{name:14}", *(f"{what} {float(a[0]):+.4f} ± {float(b[0]):.4f}  " for what, (a, b) in pairs.items()))
    return figures


if __name__ == "__main__":
    main()
