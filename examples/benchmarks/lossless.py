# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
"""Times `generate(lossless=True)` beside dense steps of ours and transformers' own `generate`, greedy and sampled.

    python examples/benchmarks/lossless.py --contexts 512 4096 --threads 2 --json lossless.json --plot lossless.png
    python examples/benchmarks/lossless.py --contexts 512 --rows 4 --dtype bfloat16 --clock cpu --threads 1
    python examples/benchmarks/lossless.py --equal 200 --contexts 100    # how many greedy texts are the base's

All continue copies of the same cache, in turn, by the base's own text. A run before the measured ones compiles, and
finds out what drafts cost. `a` is the chance that a drafted token is taken, `c` the time of a draft's step and `v`
of a check with as many tokens as the checks had on average, both in dense steps. `model` is the best speed-up by
these three, see docs/lossless.md. Without `--model` it uses SmolLM2-135M-Instruct, downloaded once.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sol_hf import SOLForCausalLM
from sol_hf.decoding.lossless import pace
from sol_hf.decoding.lossless.settings import known_of
from sol_hf.evaluation.bench import PreparedPrompt
from sol_hf.evaluation.bench_text import prompt_of, read_tokens
from sol_hf.evaluation.speed import CLOCKS, exactly, run_in_turn
from sol_hf.evaluation.ways import BASE, DENSE, LOSSLESS, Way, dense_ways
from sol_hf.integrations.smollm2 import fetch_smollm2


SAMPLED = dict(do_sample=True, temperature=0.8, top_k=0)
HEAD = f"{'context':>7} {'rows':>4} {'over dense':>11} {'(texts)':>13} {'over base':>9} {'sampled':>8} "
HEAD += f"{'a':>6} {'c':>5} {'v':>5} {'model':>6} {'tokens/check':>12} {'same':>6}"


@dataclass
class Case:
    """What was measured at one context and number of rows; speeds are medians over texts and rounds."""

    context: int
    rows: int
    over_dense: float
    slowest: float
    fastest: float
    over_base: float | None
    sampled_over_dense: float
    chance: float
    step: float
    check: float
    model: float
    tokens_per_forward: float
    same_texts: int
    texts: int
    checks: list[float]

    def __str__(self) -> str:
        base = "–" if self.over_base is None else f"{self.over_base:.2f}"
        spread = f"({self.slowest:.2f}–{self.fastest:.2f})"
        return (
            f"{self.context:>7} {self.rows:>4} {self.over_dense:>11.2f} {spread:>13} "
            f"{base:>9} {self.sampled_over_dense:>8.2f} {self.chance:>6.3f} {self.step:>5.2f} {self.check:>5.2f} "
            f"{self.model:>6.2f} {self.tokens_per_forward:>12.1f} {f'{self.same_texts}/{self.texts}':>6}"
        )


def calls_after(model: SOLForCausalLM, ids: torch.Tensor, options: argparse.Namespace) -> dict[str, Callable]:
    """Generations after a prompt: every way greedy, and those of ours sampled."""
    prompt = PreparedPrompt(model, ids)
    fixed = dict(attention_mask=torch.ones_like(ids), return_dict_in_generate=True, pad_token_id=0)
    fixed |= exactly(model, options.tokens + 1)

    def call(way: Way, choice: dict[str, Any]) -> Callable:
        def run(streamer: Any = None) -> Any:
            torch.manual_seed(options.seed)
            generate = model.base.generate if way.is_base else model.generate
            given = way.options if options.lossless is None or way.name != LOSSLESS else {"lossless": options.lossless}
            cache = prompt.copy_for(way)
            return generate(ids, **fixed, **choice, **given, past_key_values=cache, streamer=streamer)

        return run

    ways = [way for way in dense_ways(model) if options.base or not way.is_base]
    calls = {way.name: call(way, dict(do_sample=False)) for way in ways}
    return calls | {f"{way.name}, sampled": call(way, SAMPLED) for way in ways if not way.is_base}


def measure(model: SOLForCausalLM, tokens: torch.Tensor, context: int, rows: int, options: argparse.Namespace) -> Case:
    """Time all ways after several texts."""
    quotients: dict[str, list[float]] = {"dense": [], "base": [], "sampled": []}
    same, forwards = 0, []
    for text in range(options.texts):
        ids = prompt_of(tokens[text * (len(tokens) // options.texts) :], context, rows)
        outputs, rounds = run_in_turn(calls_after(model, ids, options), options.rounds, options.clock)
        for seconds in rounds:
            quotients["dense"].append(seconds[DENSE] / seconds[LOSSLESS])
            quotients["sampled"].append(seconds[f"{DENSE}, sampled"] / seconds[f"{LOSSLESS}, sampled"])
            if options.base:
                quotients["base"].append(seconds[BASE] / seconds[LOSSLESS])
        expected = outputs[BASE if options.base else DENSE].sequences
        same += int((outputs[LOSSLESS].sequences == expected).all(dim=1).sum())
        forwards.append(outputs[LOSSLESS].tokens_per_forward)
    costs, agreement = known_of(model.base, rows, context)
    chance, mean = agreement.mean**rows, statistics.mean(forwards)
    checks = [costs.relative_check(length + 1) for length in range(1, pace.LONGEST + 1)]
    return Case(
        context,
        rows,
        statistics.median(quotients["dense"]),
        min(quotients["dense"]),
        max(quotients["dense"]),
        statistics.median(quotients["base"]) if options.base else None,
        statistics.median(quotients["sampled"]),
        chance,
        costs.relative_step,
        costs.relative_check(round(mean)),
        best_speed(chance, costs.relative_step, checks),
        mean,
        same,
        options.texts * rows,
        checks,
    )


def best_speed(chance: float, step: float, checks: list[float]) -> float:
    """Tokens in the time of a dense step, by the best length of drafts; 1 if none pays."""
    lengths = enumerate(checks, start=1)
    return max(1.0, *(pace.expected_tokens(n, chance) / (n * step + check) for n, check in lengths))


@dataclass
class Equality:
    """Of how many prompts the greedy text is the base's, and that of our dense steps.

    `gaps` has, for every text that is not the base's, how much better than ours the base found its own token where
    they part, in nats, and `ours_gaps` the same of our dense steps; `places` has how many tokens are equal before.
    """

    prompts: int = 0
    base: int = 0
    ours: int = 0
    ours_base: int = 0
    gaps: list[float] = field(default_factory=list)
    ours_gaps: list[float] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.base} of {self.prompts} greedy texts are the base's, {self.ours} those of our dense steps, of "
        text += f"which {self.ours_base} are the base's"
        if self.gaps:
            text += (
                f"; they part after {statistics.median(self.places):.0f} tokens (median), where the base's own token"
            )
            text += f" was better by {statistics.median(self.gaps):.3f} nats (median; at most {max(self.gaps):.3f})"
        if self.ours_gaps:
            text += f", of dense steps {statistics.median(self.ours_gaps):.3f} (at most {max(self.ours_gaps):.3f})"
        return text


def parting(text: torch.Tensor, expected: torch.Tensor, logits: tuple[torch.Tensor, ...]) -> tuple[int, float] | None:
    """Where a text `(1, length)` parts from the base's, and the gap of the base's logits there; `None` if nowhere."""
    begin = expected.shape[1] - len(logits)
    length = min(text.shape[1], expected.shape[1])
    differ = (text[0, begin:length] != expected[0, begin:length]).nonzero()
    if not len(differ):
        return None
    place = int(differ[0])
    scores = logits[place][0].float().log_softmax(-1)
    return place, float(scores[expected[0, begin + place]] - scores[text[0, begin + place]])


def count_equal(model: SOLForCausalLM, tokens: torch.Tensor, options: argparse.Namespace) -> Equality:
    """Compare greedy texts after prompts from all over a text."""
    found = Equality()
    for number in range(options.first, options.equal):
        begin = number * (len(tokens) - options.contexts[0]) // max(1, options.equal)
        ids = tokens[begin : begin + options.contexts[0]][None]
        call = dict(
            attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0, max_new_tokens=options.tokens
        )
        text, ours = (
            model.generate(ids, **way, **call)
            for way in (dict(lossless=options.lossless or True), dict(backend="fast"))
        )
        base = model.base.generate(ids, output_logits=True, return_dict_in_generate=True, **call)
        parts, parts_ours = (parting(each, base.sequences, base.logits) for each in (text, ours))
        found.prompts += 1
        found.ours += torch.equal(text, ours)
        found.base += parts is None
        found.ours_base += parts_ours is None
        found.gaps += [] if parts is None else [parts[1]]
        found.places += [] if parts is None else [parts[0]]
        found.ours_gaps += [] if parts_ours is None else [parts_ours[1]]
        if number % 10 == 9:
            print(found, file=sys.stderr, flush=True)
    return found


def plot(cases: list[Case], title: str, path: Path) -> None:
    """Speed-up by the model against the chance that a token is taken, and the measured points."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    chances = [place / 200 for place in range(100, 201)]
    for number, case in enumerate(cases):
        best = [best_speed(chance, case.step, case.checks) for chance in chances]
        name = f"context {case.context}, {case.rows} row{'s' * (case.rows > 1)}: c {case.step:.2f}, v {case.check:.2f}"
        axes.plot(chances, best, color=f"C{number}", label=name)
        axes.plot([case.chance], [case.over_dense], "o", color=f"C{number}")
    axes.set_xlabel("chance that a drafted token is taken")
    axes.set_ylabel("speed over our dense steps")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--model", help="folder or Hub id of a base; default: SmolLM2-135M-Instruct")
    add("--contexts", type=int, nargs="+", default=[512], help="tokens of the prompt")
    add("--rows", type=int, nargs="+", default=[1], help="texts at once")
    add("--dtype", default="float32", choices=("float32", "bfloat16"), help="of the base")
    add("--tokens", type=int, default=64, help="new tokens")
    add("--texts", type=int, default=4, help="prompts of each length")
    add("--rounds", type=int, default=2, help="measured runs of every way and text, in turn")
    add("--lossless", type=int, help="tokens of every draft; by default measured times decide")
    add("--no-base", dest="base", action="store_false", help="leave out transformers' generate")
    add("--equal", type=int, help="count equal greedy texts over so many prompts, and time nothing")
    add("--first", type=int, default=0, help="of them, begin with this one: the rest of an earlier run")
    add("--threads", type=int, help="of torch; default: what torch takes")
    add("--clock", choices=CLOCKS, default="wall", help="cpu: processor time, for a busy machine")
    add("--seed", type=int, default=0, help="of sampled texts")
    add("--data", help="texts for prompts; default: Python's manual")
    add("--json", type=Path, help="also write the numbers to a file")
    add("--plot", type=Path, help="also draw the model and the measured points")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measures, prints the table, writes files; returns the exit status."""
    options = parse_options(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    pace.read_clock = CLOCKS[options.clock]
    source = options.model or fetch_smollm2()
    base = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, options.dtype)).eval()
    model = SOLForCausalLM.from_base(base)
    tokens = read_tokens(options.data, "text", AutoTokenizer.from_pretrained(source))
    model.warmup(lossless=True, backend="fast")
    setting = f"{Path(source).name}, {options.dtype}, {torch.get_num_threads()} threads, {options.tokens} tokens"
    if options.equal:
        print(f"{setting}: {count_equal(model, tokens, options)}")
        return 0
    print(f"{setting}, {options.texts} texts, {options.rounds} rounds, {options.clock} clock\n{HEAD}", flush=True)
    cases = []
    for context, rows in product(options.contexts, options.rows):
        cases.append(measure(model, tokens, context, rows, options))
        print(cases[-1], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps({"setting": setting, "cases": [asdict(case) for case in cases]}, indent=1))
    if options.plot is not None:
        plot(cases, setting, options.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
