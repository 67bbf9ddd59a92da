# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Runs tasks of lm-evaluation-harness under a budget, and prints its table and what the answers have spent.

    python examples/evaluate_lm_eval.py policy --base smollm2-135m --tasks hellaswag --limit 100 --bits 8

`sol-hf lm-eval` has all options of lm-eval; here it is from Python. With `--include-path` tasks come from a folder of
YAML files. On a random policy and a task of three questions that the script writes, in seconds:

    python examples/evaluate_lm_eval.py --tiny
"""

import argparse
import json
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.cli.inputs import load_policy
from sol_hf.integrations.lm_eval_adapter import SOLLM
from sol_hf.integrations.tiny_llama import tiny_base, tiny_tokenizer


QUESTIONS = [("The sea is", "salt", "square"), ("Grass is", "green", "loud"), ("Ice is", "cold", "an even number")]
TASK = """task: tiny_questions
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: 0
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("policy", nargs="?", help="folder or Hub id of a policy")
    parser.add_argument("--base", help="folder or Hub id of its base, by default the one that the policy names")
    parser.add_argument("--dtype", default="float32", help="of the base")
    parser.add_argument("--tasks", nargs="+", default=["tiny_questions"])
    parser.add_argument("--include-path", help="folder with the YAML files of further tasks")
    parser.add_argument("--limit", type=int, help="documents of a task, at most")
    parser.add_argument("--token-keep", type=float, default=0.5)
    parser.add_argument("--mlp-keep", type=float, default=0.7)
    parser.add_argument("--bits", type=float, default=8)
    parser.add_argument("--tiny", action="store_true", help="a random policy, and a task of three questions")
    options = parser.parse_args(arguments)
    if options.policy is None and not options.tiny:
        parser.error("give a policy, or --tiny")
    return options


def write_task(folder: str) -> None:
    """A task of three questions with two answers each."""
    file = Path(folder, "questions.jsonl")
    rows = [json.dumps({"question": question, "choices": answers}) for question, *answers in QUESTIONS]
    file.write_text("\n".join(rows), encoding="utf-8")
    Path(folder, "questions.yaml").write_text(TASK.format(file=json.dumps(str(file))), encoding="utf-8")


def main(arguments: list[str] | None = None) -> dict:
    """Prints the tables and returns lm-eval's results."""
    options = parse(arguments)
    if options.tiny:
        tokenizer = tiny_tokenizer()
        config = SOLConfig(episode_length=4, policy_hidden_size=32, policy_num_heads=2)
        model = SOLForCausalLM.from_base(tiny_base(tokenizer), config)
    else:
        model, tokenizer = load_policy(options)
    budget = dict(token_keep=options.token_keep, mlp_keep=options.mlp_keep, bits=options.bits)
    with tempfile.TemporaryDirectory() as folder:
        write_task(folder)
        tasks = TaskManager(include_path=options.include_path or folder, include_defaults=not options.tiny)
        lm = SOLLM(model, tokenizer=tokenizer, **budget)
        results = simple_evaluate(lm, tasks=options.tasks, task_manager=tasks, limit=options.limit, bootstrap_iters=0)
    print(make_table(results))
    for task, spent in results["config"]["sol"]["realised"].items():
        print(f"{task}: {spent}")
    return results


if __name__ == "__main__":
    main()
