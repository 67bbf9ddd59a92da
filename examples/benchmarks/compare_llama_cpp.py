# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times llama.cpp beside this package in one run: same weights, one text, one token at a time, in turn.

    python -m venv llama && llama/bin/pip install llama-cpp-python      # builds llama.cpp; needs a C++ compiler
    python examples/benchmarks/compare_llama_cpp.py --llama-python llama/bin/python --contexts 512 4096 \\
        --threads 2 --dtype float32 --json compare_llama_cpp.json

llama.cpp runs in processes of its own, with the weights of SmolLM2-135M-Instruct that `fetch_smollm2` converts: from
the same GGUF file, by llama.cpp's own conversion, as F32, BF16 and Q8_0. Its keys and values have 16 bits, as by
default. Ours are transformers' `generate`, dense steps on our cache, and the settings of `sol-hf bench`. Each waits
while another runs. In every round each continues the same cached text by the same number of steps, ours with KV
refresh. `agree` is the share of steps at which the most likely token after given text is that of our dense steps; it
shows that both compute the same model.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf.evaluation.bench import PreparedPrompt, runs_of, usable_ways
from sol_hf.evaluation.bench_report import NAMES
from sol_hf.evaluation.bench_text import prompt_of, read_tokens
from sol_hf.evaluation.speed import run_in_turn
from sol_hf.evaluation.ways import DENSE, model_for_settings, ways_of_settings
from sol_hf.integrations.smollm2 import fetch_gguf, fetch_smollm2


WORKER = Path(__file__).with_name("llama_cpp_worker.py")
SAME = {"float32": "llama.cpp F32", "bfloat16": "llama.cpp BF16"}
Q8 = "llama.cpp Q8_0"
HEAD = f"{'':<18} {'ms a token':>10} {'(rounds)':>15} {'over same':>10} {'over Q8_0':>10} {'agree':>6}"


class LlamaCpp:
    """llama.cpp in a process of its own, which waits for requests."""

    def __init__(self, python: str, model: Path, ids: Path, threads: int):
        command = [python, str(WORKER), "serve", str(model), str(ids), str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def ask(self, context: int, steps: int) -> dict:
        """Continue the first `context` tokens by `steps`."""
        self._process.stdin.write(f"{context} {steps}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self):
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended with status {self._process.wait()}; see above")
        return json.loads(line)

    def run_of(self, context: int, steps: int, clock: str) -> Callable:
        """A run for [`run_in_turn`]."""

        def run(streamer=None):
            answer = self.ask(context, steps)
            if streamer is not None:
                streamer.times += [0.0, 0.0, answer["seconds" if clock == "wall" else "cpu"]]
            return answer

        return run

    def end(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait()


def measure(model, ways, llamas: dict[str, LlamaCpp], tokens: torch.Tensor, context: int, options) -> dict[str, dict]:
    """Milliseconds a token of all in turn, and how often they agree, by name."""
    ids = prompt_of(tokens, context, 1)
    prompt, steps, clock = PreparedPrompt(model, ids), options.steps, options.clock
    runs = {name: llama.run_of(context, steps, clock) for name, llama in llamas.items()}
    runs |= runs_of(model, ways, prompt, steps + 1)
    outputs, rounds = run_in_turn(runs, options.rounds, clock)
    text = prompt_of(tokens, context + steps, 1)
    with torch.no_grad():
        wanted = model.base(text).logits[0, context:].argmax(dim=-1).tolist()
    found = {}
    for name in runs:
        likely = outputs[name].get("likely") if name in llamas else None
        agree = None if likely is None else sum(map(int.__eq__, likely, wanted)) / steps
        found[name] = {"ms": [1000 * times[name] / steps for times in rounds], "agree": agree}
    return found


def lines_of(found: dict[str, dict], dtype: str) -> list[str]:
    """The table of a context."""
    lines = [HEAD]
    for name, result in found.items():
        low, high = min(result["ms"]), max(result["ms"])
        ratios = []
        for other in (SAME[dtype], Q8):
            pairs = zip(found[other]["ms"], result["ms"], strict=True)
            ratios.append(f"{statistics.median(theirs / own for theirs, own in pairs):.2f}")
        agree = "" if result["agree"] is None else f"{result['agree']:.2f}"
        spread = f"({low:.1f}–{high:.1f})"
        lines.append(
            f"{NAMES.get(name, name):<18} {statistics.median(result['ms']):>10.1f} {spread:>15} "
            f"{ratios[0]:>10} {ratios[1]:>10} {agree:>6}".rstrip()
        )
    return lines


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-python", required=True, help="Python of an environment that has llama-cpp-python")
    parser.add_argument("--contexts", type=int, nargs="+", default=[512, 4096])
    parser.add_argument("--steps", type=int, default=32, help="timed steps of a run")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--dtype", choices=list(SAME), default="float32", help="of ours")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--json", type=Path, metavar="FILE")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints a table per context."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    source = fetch_smollm2()
    tokenizer = AutoTokenizer.from_pretrained(source)
    base = AutoModelForCausalLM.from_pretrained(source, dtype=options.dtype).eval()
    model, tokens = model_for_settings(base), read_tokens(None, "text", tokenizer)
    ways, refused = usable_ways(model, ways_of_settings(model))
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        ids = Path(folder, "ids.json")
        ids.write_text(json.dumps(prompt_of(tokens, max(options.contexts) + options.steps, 1)[0].tolist()))
        gguf, llamas = fetch_gguf(Path(folder)), {}
        try:
            for kind in ("F32", "BF16", "Q8_0"):
                target = Path(folder, f"{kind}.gguf")
                command = [options.llama_python, str(WORKER), "quantize", str(gguf), str(target), kind]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                llamas[f"llama.cpp {kind}"] = LlamaCpp(options.llama_python, target, ids, options.threads)
            for context in options.contexts:
                results[context] = measure(model, ways, llamas, tokens, context, options)
                setting = f"context {context}, 1 row, {options.dtype}, {options.threads} threads"
                print("\n".join([f"\n{setting}", *lines_of(results[context], options.dtype)]), flush=True)
        finally:
            for llama in llamas.values():
                llama.end()
    print("\nover same: speed over llama.cpp in the precision of ours; medians of ratios within a round.")
    if options.json is not None:
        report = {"dtype": options.dtype, "threads": options.threads, "steps": options.steps, "results": results}
        options.json.write_text(json.dumps(report | {"refused": refused, "dense": DENSE}, indent=2), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
