# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Decode steps of a random-weight, 8B-shaped model on a GPU: dense, under a budget, and from one CUDA graph.

    python examples/benchmarks/decode_cuda.py --json decode.json
    python examples/benchmarks/decode_cuda.py --contexts 16384 --rows 16 --budget 0.1 1 16

The cache is filled with random keys and values instead of a prompt. A step under a budget is complete: policy, hard
budget, base, and a KV refresh after every episode. The variants:

    budget, captured         the base's part of a step from one CUDA graph, with the Triton kernels
    no refresh, captured     the same with `kv_refresh=False`
    (1, 1, 16), captured     the same graph and kernels without a budget: shows the gain of the budget
    budget                   the same kernels, launched one by one
    budget, reference        plain torch: gathers all pages and masks most of them
    dense, SOLCache          the base's own code on our cache, which grows in place
    dense, DynamicCache      the base's own code on its own cache: what `generate` runs
    dense, StaticCache       the base's own code on a static cache from one CUDA graph (only with a GPU)
    dense, compiled          the same by `torch.compile(mode="reduce-overhead")` (with --compile: takes minutes)

Without a GPU, `--tiny` runs a tiny model in Triton's interpreter, to check that it works; its times have no meaning.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, DynamicCache, LlamaConfig, StaticCache


SHAPES = {
    "8b": dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, head_dim=128),
    "1b": dict(hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, head_dim=64),
    "tiny": dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, head_dim=16),
}
BASELINE = "dense, DynamicCache"
COLUMNS = "context rows variant ms/step dense/this GB".split()


def random_base(shape: str, device: str, dtype: torch.dtype, positions: int):
    """A Llama of the given shape with random weights."""
    sizes = SHAPES[shape]
    kv_heads, words = (1, 99) if shape == "tiny" else (8, 128256)
    config = LlamaConfig(
        **sizes, num_key_value_heads=kv_heads, vocab_size=words, max_position_embeddings=positions, pad_token_id=None
    )
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa").eval()


def fill(cache, base, rows: int, context: int):
    """The cache with random keys and values of `context` tokens."""
    config, weight = base.config, base.lm_head.weight
    shape = (rows, config.num_key_value_heads, context, config.head_dim)
    for layer in range(config.num_hidden_layers):
        cache.update(*(torch.randn(shape, device=weight.device, dtype=weight.dtype) for _ in range(2)), layer)
    return cache


def dense_steps(model, cache, rows: int, context: int) -> Callable:
    """A function that runs one dense step of the base over a cache."""
    cache = fill(cache, model.base, rows, context)
    token = torch.ones(rows, 1, dtype=torch.long, device=model.base.device)
    return lambda: model.base(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


def replayed(step: Callable) -> Callable:
    """A step over buffers, from one CUDA graph."""
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()
    return lambda: (graph.replay(), output)


def compiled_steps(model, cache, rows: int, context: int) -> Callable:
    """A function that runs one dense step of the base, compiled by torch, over a static cache."""
    cache = fill(cache, model.base, rows, context)
    token = torch.ones(rows, 1, dtype=torch.long, device=model.base.device)
    forward = torch.compile(model.base.forward, mode="reduce-overhead", fullgraph=True)
    return lambda: forward(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)


def budget_steps(model, rows: int, context: int, budget: Sequence[float], captures: int | None, **options) -> Callable:
    """A function that runs one step under a budget, from a graph for up to `captures` tokens or not."""
    from sol_hf import Budget, PolicyController
    from sol_hf.decoding.forward_inputs import ForwardInputs
    from sol_hf.decoding.options import resolve_options
    from sol_hf.decoding.session import DecodingSession
    from sol_hf.decoding.step import decode_step

    given = {"budget": Budget(*budget), "backend": "fast", "cuda_graphs": captures or False, **options}
    controls = resolve_options(given, None, model.generation_config).controls(
        PolicyController(model.policy), model.config
    )
    cache = model.new_cache()
    session = DecodingSession(model.base, cache, controls, decode_from=context).begin()
    session.set_up_rows(rows, model.base.device)
    fill(cache, model.base, rows, context)
    cache.end_episode(
        torch.zeros(rows, model.base.config.hidden_size, device=model.base.device, dtype=model.base.dtype)
    )
    token = torch.ones(rows, 1, dtype=torch.long, device=model.base.device)
    return lambda: decode_step(session, ForwardInputs(token))


def milliseconds(step: Callable, device: str, warm_ups: int, steps: int) -> float:
    """Mean time of a step over whole episodes."""
    for _ in range(warm_ups):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - begin) / steps


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=("8b", "1b"), default="8b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[32768])
    parser.add_argument("--rows", type=int, nargs="+", default=[1])
    parser.add_argument("--budget", type=float, nargs=3, default=[0.1, 0.5, 16.0], metavar=("KEEP", "MLP", "BITS"))
    parser.add_argument("--episodes", type=int, default=4, help="timed episodes of 16 steps")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="also time the base compiled by torch: takes minutes")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="what a step spends its time on, to this file")
    parser.add_argument("--tiny", action="store_true", help="a tiny model on the CPU, in Triton's interpreter")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers to this file")
    return parser.parse_args(arguments)


def make_variants(model, options: argparse.Namespace, total: int) -> dict[str, Callable[[int, int], Callable]]:
    """The variants to time, by name: functions of rows and context that prepare a step and return it."""
    base, budget, static = model.base, options.budget, dict(config=model.base.config, max_cache_len=total)
    variants: dict[str, Callable[[int, int], Callable]] = {
        "budget, captured": lambda rows, n: budget_steps(model, rows, n, budget, total),
        "no refresh, captured": lambda rows, n: budget_steps(model, rows, n, budget, total, kv_refresh=False),
        "(1, 1, 16), captured": lambda rows, n: budget_steps(model, rows, n, (1.0, 1.0, 16.0), total),
        "budget": lambda rows, n: budget_steps(model, rows, n, budget, None),
        "dense, SOLCache": lambda rows, n: dense_steps(model, model.new_cache(), rows, n),
        BASELINE: lambda rows, n: dense_steps(model, DynamicCache(config=base.config), rows, n),
    }
    if base.device.type == "cuda":
        variants["dense, StaticCache"] = lambda rows, n: replayed(dense_steps(model, StaticCache(**static), rows, n))
    variants["budget, reference"] = lambda rows, n: budget_steps(model, rows, n, budget, None, backend="reference")
    if options.compile:
        variants["dense, compiled"] = lambda rows, n: compiled_steps(model, StaticCache(**static), rows, n)
    return variants


def time_variant(
    name: str, prepare: Callable, case: tuple[int, int], base, episode: int, options: argparse.Namespace
) -> dict:
    """Times of one variant in one case; every round is some whole episodes."""
    from sol_hf.execution.instrumentation import Instrumentation

    context, rows = case
    device, steps = base.device.type, episode * options.episodes
    with torch.no_grad(), contextlib.nullcontext() if name.startswith("dense") else Instrumentation.of(base):
        step = prepare(rows, context)
        milliseconds(step, device, episode, 1)
        rounds = [milliseconds(step, device, 0, steps) for _ in range(options.repeats)]
        if options.profile and name == "budget, captured" and device == "cuda":
            profile(step, episode, options.profile)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else float("nan")
    named = {"context": context, "rows": rows, "variant": name}
    return {**named, "ms/step": statistics.median(rounds), "rounds": rounds, "GB": memory}


def profile(step: Callable, steps: int, file: Path) -> None:
    """Write the time and the number of calls of every kind of kernel in an episode."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        torch.cuda.synchronize()
    table = profiler.key_averages().table(sort_by="self_cuda_time_total", row_limit=60, max_name_column_width=90)
    file.write_text(table, encoding="utf-8")


def benchmark(options: argparse.Namespace, device: str, report: Callable[[list[dict]], None]) -> list[dict]:
    """All variants at all contexts and batch sizes; those under a budget first, so that a lack of memory shows early.

    `report` gets all results so far after every variant.
    """
    from sol_hf import SOLConfig, SOLForCausalLM

    shape, dtype = ("tiny", torch.float32) if options.tiny else (options.shape, torch.bfloat16)
    settings = dict(page_size=16, selection="group", action_head="factored", budget_prior=True)
    episode = 4 if options.tiny else 16
    total = max(options.contexts) + episode + (episode * options.episodes + 2) * options.repeats + 2 * episode
    total += -total % 64
    base = random_base(shape, device, dtype, total)
    model = SOLForCausalLM.from_base(base, SOLConfig(**settings, episode_length=episode))
    results: list[dict] = []
    for context in options.contexts:
        for rows in options.rows:
            for name, prepare in make_variants(model, options, total).items():
                if device == "cuda":
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats()
                results.append(time_variant(name, prepare, (context, rows), base, episode, options))
                report(results)
    return results


def compare(results: list[dict]) -> list[dict]:
    """The results with their speed relative to the base on its own cache, in the same case."""
    dense = {(r["context"], r["rows"]): r["ms/step"] for r in results if r["variant"] == BASELINE}
    nothing = float("nan")
    return [{**r, "dense/this": dense.get((r["context"], r["rows"]), nothing) / r["ms/step"]} for r in results]


def main(arguments: list[str] | None = None) -> int:
    """Runs the benchmark; returns the exit status."""
    options = parse_options(arguments)
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        from sol_hf.kernels.cuda import triton_support

        triton_support.DEVICES = ("cuda", "cpu")
    elif not torch.cuda.is_available():
        print("error: no GPU here; --tiny runs a tiny model on the CPU, to see that it works", file=sys.stderr)
        return 2
    device = "cpu" if options.tiny else "cuda"
    name = "CPU, Triton's interpreter" if options.tiny else torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}, budget {tuple(options.budget)}")

    def report(results: list[dict]) -> None:
        print(f"  {results[-1]['variant']}: {results[-1]['ms/step']:.3f} ms", flush=True)
        if options.json:
            contents = {"device": name, "torch": torch.__version__, "budget": options.budget}
            text = json.dumps({**contents, "results": compare(results)}, indent=2)
            options.json.write_text(text + "\n", encoding="utf-8")

    results = compare(benchmark(options, device, report))
    for line in (COLUMNS, *([f"{r[c]:.3f}" if isinstance(r[c], float) else r[c] for c in COLUMNS] for r in results)):
        print("{:>8} {:>5} {:<22} {:>10} {:>10} {:>8}".format(*line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
