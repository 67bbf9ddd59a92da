# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Small evaluations of lm-eval: tasks, budgets, and their results."""

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from support.paths import DATA


TASK_FOLDER = str(DATA / "lm_eval_tasks")
EVERY_TASK = ("tiny_choices", "tiny_texts", "tiny_answers")
CHEAP = dict(token_keep=0.5, mlp_keep=0.7, bits=8)
FULL = dict(token_keep=1.0, mlp_keep=1.0, bits=16)


def evaluate(lm, tasks=EVERY_TASK, **options) -> dict:
    """Results and samples of tiny tasks; `lm` is an adapter, or a name with `model_args`."""
    manager = TaskManager(include_path=TASK_FOLDER, include_defaults=False)
    return simple_evaluate(
        lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, verbosity="ERROR", **options
    )


def answers(results: dict) -> dict[str, list]:
    """The responses of every task."""
    return {task: [sample["resps"] for sample in samples] for task, samples in results["samples"].items()}
