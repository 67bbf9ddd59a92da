# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times batches of training and dense decoding of the same tokens, in one run on the CPU, and prints one table.

    python examples/benchmarks/training.py --contexts 256 1024 --blocks 2 --rollouts 16 --steps 16 --repeats 5 \
        --dtype float32 --json benchmark_training.json

Without `--model` it uses SmolLM2-135M-Instruct, downloaded once. Tokens and policy are random, which does not change
the time. A run of `SOLGRPOTrainer` makes one update per batch. Before every batch dense decoding runs on the same
blocks:

    dense       for comparison: the base's own forward with sdpa, one token per row and step, over transformers' cache
                with the context repeated for every rollout; prefill and repetition are not counted
    prefill     the context of every block, once
    rollouts    the same steps under sampled schedules, over one copy of the context per block
    rest        rewards, advantages, and the update of the policy
    no prefill  rollouts and rest
    batch       a whole training batch: no prefill, and prefill

`seconds` are medians over the batches after the first, `ratio` is the median of the quotients with the dense run of
the same batch, `actions/s` counts the rollouts' actions. `peak` is the peak memory (`ru_maxrss`: Python, libraries,
weights and data) of a separate process, which trains on two batches, or only runs dense decoding.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PrinterCallback, TrainerCallback

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.integrations.smollm2 import ModelUnavailableError, fetch_smollm2
from sol_hf.training import grpo_trainer
from sol_hf.training.grpo_config import SOLGRPOConfig


PARTS = ("dense", "prefill", "rollouts", "rest", "no prefill", "batch")
FUNCTIONS = {"prefill": "prefill", "roll_out": "rollouts"}
NOTE = "Only ratios within a run mean anything: times depend on the machine and on what else it does."
COLUMNS = ("context", "part", "seconds", "ratio", "actions/s", "peak MB")


@dataclass(frozen=True)
class Result:
    """One line of the table; `rounds` are the seconds of every batch, `peak_mb` is `None` for parts of a process."""

    context: int
    part: str
    seconds: float
    ratio: float
    actions_per_second: float
    peak_mb: float | None
    rounds: list[float]

    def cells(self) -> tuple[str, ...]:
        """The values of a table row, in the order of `COLUMNS`."""
        speed = f"{self.actions_per_second:.0f}" if self.part not in ("prefill", "rest") else ""
        peak = "" if self.peak_mb is None else f"{self.peak_mb:.0f}"
        return str(self.context), self.part, f"{self.seconds:.3f}", f"{self.ratio:.3f}", speed, peak


def random_blocks(base: PreTrainedModel, context: int, options: argparse.Namespace) -> torch.Tensor:
    """Token ids `(blocks, context + steps + 1)`."""
    shape = (options.blocks, context + options.steps + 1)
    return torch.randint(base.config.vocab_size, shape, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def dense_seconds(base: PreTrainedModel, blocks: torch.Tensor, options: argparse.Namespace) -> float:
    """Seconds of the dense steps after the context of every block, once per rollout, scored on the next token."""
    context = blocks.shape[1] - options.steps - 1
    cache = DynamicCache(config=base.config)
    base(blocks[:, :context], past_key_values=cache, logits_to_keep=1)
    cache.batch_repeat_interleave(options.rollouts)
    rows = blocks.repeat_interleave(options.rollouts, dim=0)
    begin = time.perf_counter()
    for place in range(context, context + options.steps):
        logits = base(rows[:, place, None], past_key_values=cache).logits[:, -1].float()
        logits.gather(1, rows[:, place + 1, None]).squeeze(1) - logits.logsumexp(dim=-1)
    return time.perf_counter() - begin


class Watch(TrainerCallback):
    """Times the parts of every training batch, and runs a function before it.

    Args:
        before (`Callable[[], float]`, *optional*): Returns the seconds of a dense run.
    """

    def __init__(self, before: Callable[[], float] | None = None):
        self.before = before
        self.rounds: list[dict[str, float]] = []
        self._spent: dict[str, float] = defaultdict(float)

    def timed(self, part: str, function: Callable) -> Callable:
        """Wrap `function` so that its calls are recorded as a part of the batch."""

        def wrapper(*args, **kwargs):
            begin = time.perf_counter()
            result = function(*args, **kwargs)
            self._spent[part] += time.perf_counter() - begin
            return result

        return wrapper

    def on_step_begin(self, args, state, control, **kwargs):
        self._spent.clear()
        if self.before is not None:
            self._spent["dense"] = self.before()
        self._begin = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs):
        batch = time.perf_counter() - self._begin
        no_prefill = batch - self._spent["prefill"]
        rest = no_prefill - self._spent["rollouts"]
        self.rounds.append({**self._spent, "rest": rest, "no prefill": no_prefill, "batch": batch})


def train(
    base: PreTrainedModel, blocks: torch.Tensor, options: argparse.Namespace, watch: Watch, updates: int
) -> None:
    """A run of the trainer with one update a batch of all blocks."""
    rows = options.blocks * options.rollouts
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        for name, part in FUNCTIONS.items():
            timed = watch.timed(part, getattr(grpo_trainer, name))
            stack.enter_context(patch.object(grpo_trainer, name, timed))
        args = SOLGRPOConfig(
            output_dir=folder,
            context_length=blocks.shape[1] - options.steps - 1,
            num_generations=options.rollouts,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=1,
            rollout_batch_size=rows,
            max_steps=updates,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        trainer = grpo_trainer.SOLGRPOTrainer(
            SOLForCausalLM.from_base(base, SOLConfig(episode_length=options.steps)),
            args,
            train_dataset=Dataset.from_dict({"input_ids": blocks.tolist()}),
            callbacks=[watch],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()


def benchmark(
    base: PreTrainedModel, context: int, options: argparse.Namespace, peaks: dict[str, float]
) -> list[Result]:
    """All parts at one length of the context."""
    blocks = random_blocks(base, context, options)
    watch = Watch(lambda: dense_seconds(base, blocks, options))
    train(base, blocks, options, watch, 1 + options.repeats)
    results = []
    for part in PARTS:
        rounds = [spent[part] for spent in watch.rounds[1:]]  # the first one finds nothing warm
        ratios = [spent[part] / spent["dense"] for spent in watch.rounds[1:]]
        seconds = statistics.median(rounds)
        speed = options.blocks * options.rollouts * options.steps / seconds
        results.append(Result(context, part, seconds, statistics.median(ratios), speed, peaks.get(part), rounds))
    return results


def load(options: argparse.Namespace) -> PreTrainedModel:
    """The frozen base."""
    source = options.model or fetch_smollm2()
    return AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype, attn_implementation="sdpa").eval()


def peak_of(part: str, context: int, options: argparse.Namespace) -> float:
    """Peak memory in MB of a separate process: this script, called with `--measure-peak`.

    Call it while this process is small, since a new process inherits the peak memory of the process that starts it.
    """
    sizes = f"--contexts {context} --blocks {options.blocks} --rollouts {options.rollouts} --steps {options.steps}"
    command = [sys.executable, __file__, *sizes.split(), "--dtype", options.dtype, "--measure-peak", part]
    command += ["--model", options.model] if options.model else []
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return float(lines[-1])


def measure_peak(options: argparse.Namespace) -> float:
    """The command `--measure-peak`: run the work and print the peak memory of this process in MB."""
    base = load(options)
    blocks = random_blocks(base, options.contexts[0], options)
    if options.measure_peak == "dense":
        dense_seconds(base, blocks, options)
    else:
        train(base, blocks, options, Watch(), 2)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def describe_machine() -> dict[str, str | int]:
    """Properties of the machine on which the times depend."""
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    return {"processor": platform.machine(), "cores": cores, "torch threads": threads, "torch": torch.__version__}


def show(results: list[Result]) -> None:
    """Prints the table."""
    for line in (COLUMNS, *(result.cells() for result in results)):
        print("{:>7}  {:<10} {:>8} {:>7} {:>10} {:>8}".format(*line))


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Time batches of training beside dense decoding of the same tokens.")
    parser.add_argument("--model", help="folder or hub id of a causal LM (default: SmolLM2-135M-Instruct)")
    parser.add_argument("--contexts", type=int, nargs="+", default=[256, 1024], help="tokens before the rollouts")
    parser.add_argument("--blocks", type=int, default=2, help="texts in a batch")
    parser.add_argument("--rollouts", type=int, default=16, help="rollouts of every text")
    parser.add_argument("--steps", type=int, default=16, help="steps of a rollout")
    parser.add_argument("--repeats", type=int, default=5, help="batches that count")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--no-peak", action="store_true", help="do not start processes that measure memory")
    parser.add_argument("--measure-peak", choices=("dense", "batch"), help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    options = parser.parse_args(arguments)
    if min(*options.contexts, options.blocks, options.steps, options.repeats) < 1 or options.rollouts < 2:
        parser.error("contexts, blocks, steps and repeats must be at least 1, rollouts at least 2")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    try:
        if options.measure_peak:
            print(measure_peak(options))
            return 0
        machine = describe_machine() | {"dtype": options.dtype}
        print(", ".join(f"{name} {value}" for name, value in machine.items()), NOTE, sep="\n")
        parts = () if options.no_peak else ("dense", "batch")
        peaks = {context: {part: peak_of(part, context, options) for part in parts} for context in options.contexts}
        base = load(options)
    except ModelUnavailableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    results = [line for context in options.contexts for line in benchmark(base, context, options, peaks[context])]
    show(results)
    if options.json:
        sizes = {name: getattr(options, name) for name in ("blocks", "rollouts", "steps")}
        report = {"machine": machine, **sizes, "note": NOTE, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
