# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times the start of a process, from its first import to its first tokens, part by part.

    python examples/benchmarks/start.py --model smollm2-135m --set "bits: 8, bits_backend: nested"

Every part runs in a process that does nothing else before it, so that imports count where they belong. A first run,
which is not timed, compiles what is not in the cache folder yet; with `--repeats 3` the median of three processes is
printed. `first token` is a call for one token after the parts above it, `a later call` the same once more. `ours` adds
up the lines that are not the base's: everything but torch, transformers, and loading the base.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time


FOREIGN = ("import torch", "import transformers", "load the base", "a later call")
"""Parts that are not this package's."""


def measure(options: argparse.Namespace) -> dict[str, list[float]]:
    """Seconds on the clock and of the processor for every part of the start of this process."""
    parts: dict[str, list[float]] = {}
    begin = [time.perf_counter(), time.process_time()]

    def note(name: str) -> None:
        now = [time.perf_counter(), time.process_time()]
        parts[name] = [after - before for after, before in zip(now, begin, strict=True)]
        begin[:] = now

    import torch

    note("import torch")
    from transformers import AutoModelForCausalLM, GenerationMixin, LlamaForCausalLM, PreTrainedModel  # noqa: F401

    note("import transformers")
    from sol_hf import FixedController, SOLForCausalLM
    from sol_hf.evaluation.settings import model_with

    note("import sol_hf")
    from machine import load_base

    base = load_base(options.model, "float32", "cpu")
    note("load the base")
    import yaml

    setting = yaml.safe_load(f"{{{options.set}}}") if options.set else {}
    model = model_with(base, setting, 16) if setting else SOLForCausalLM.from_base(base)
    call: dict = {
        name: value for name, value in setting.items() if name in (*model.action_space.axis_names, "bits_backend")
    }
    call |= {"controller": FixedController()} if setting else {"backend": "fast"}
    note("make the model")
    model.warmup(**call)
    note("model.warmup()")
    ids = torch.arange(64)[None] + 5
    for name in ("first token", "a later call"):
        model.generate(ids, **call, max_new_tokens=1, do_sample=False, pad_token_id=0)
        note(name)
    return parts


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m", help="as in decode.py")
    parser.add_argument(
        "--set", default="", metavar="YAML", help="a setting, as in compare_settings.py; default: dense"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    options = parse(arguments)
    if options.once:
        sys.stdout.write(json.dumps(measure(options)) + "\n")
        return 0
    command = [sys.executable, __file__, "--once", "--model", options.model, "--set", options.set]
    runs = []
    for _ in range(1 + options.repeats):
        outcome = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        runs.append(json.loads(outcome.stdout.splitlines()[-1]))
    medians = {name: [statistics.median(run[name][i] for run in runs[1:]) for i in (0, 1)] for name in runs[0]}
    medians["ours"] = [sum(medians[name][i] for name in medians if name not in FOREIGN) for i in (0, 1)]
    print(f"{'part':<22} {'seconds':>8} {'processor':>10}")
    for name, (wall, processor) in medians.items():
        print(f"{name:<22} {wall:>8.2f} {processor:>10.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
