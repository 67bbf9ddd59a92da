# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks on tiny models: their output, and that they clean up."""

import importlib
import json
import re
import sys

import pytest
import torch

from sol_hf import SOLForCausalLM
from sol_hf.decoding import step as decoding
from sol_hf.execution.attention.step import numba_pages
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.linear.onednn import has_onednn
from support.bases import tiny_base
from support.paths import EXAMPLES


VARIANTS = ["base", "own cache, dense", "(1, 1, 16)", "(0.5, 0.7, 8)", "(0.2, 0.5, 6)"]
BUDGETS = "--budgets 1,1,16 .5,.7,8 .2,.5,6"


@pytest.fixture
def module(monkeypatch):
    """Imports a benchmark by name, and forgets it again."""
    folder = EXAMPLES / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    yield importlib.import_module
    for file in folder.glob("*.py"):
        sys.modules.pop(file.stem, None)


@pytest.fixture
def benchmark(module, monkeypatch):
    decode = module("decode")
    monkeypatch.setattr(decode, "copy_bandwidth", lambda device: 1e9)
    return decode


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny_base("llama").save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("controller", ["policy", "fixed"])
def test_table_and_json(benchmark, folder, tmp_path, capsys, controller):
    original, file = decoding.refresh, tmp_path / "numbers.json"
    command = (
        f"--model {folder} --contexts 20 24 --batch-sizes 1 2 --new-tokens 18 --repeats 2 --json {file} {BUDGETS}"
    )
    assert benchmark.main([*command.split(), "--controller", controller]) == 0
    assert decoding.refresh is original

    printed = capsys.readouterr().out
    assert "dtype float32" in printed.splitlines()[0] and "1.0 GB/s" in printed and benchmark.NOTE in printed
    lines = [line for line in printed.splitlines() if re.match(r" +\d+ +\d+ ", line)]
    assert [line[13:35].strip() for line in lines] == VARIANTS * 4

    report = json.loads(file.read_text())
    results = report["results"]
    assert [r["variant"] for r in results] == VARIANTS * 4
    cases = [(r["context"], r["rows"]) for r in results[:: len(VARIANTS)]]
    assert cases == [(20, 1), (20, 2), (24, 1), (24, 2)]
    for result in results:
        name = result["variant"]
        chosen = name in VARIANTS[3:]
        assert len(result["rounds"]) == 2 and min(result["rounds"]) > 0
        assert result["speed_up"] == 1 or name != "base"
        assert result["own_cache"] == 1 or name != "own cache, dense"
        assert (result["policy"] > 0) == (chosen or name == "own cache, dense"), name
        assert (result["refresh"] > 0) == chosen, name  # only sparse steps are refreshed


def test_bytes_of_a_step(benchmark):
    model = SOLForCausalLM.from_base(tiny_base("llama"))
    prompt = benchmark.Prompt(model, 25, 2)
    layers, head = sum(p.nbytes for p in model.base.model.layers.parameters()), 99 * 32 * 4
    gate_and_up, keys = 2 * 2 * 32 * 64 * 4, 2 * 2 * 2 * 24 * 8 * 4
    dense = head + layers + 2 * keys
    count = lambda budget, refresh: benchmark.bytes_to_read(model.base, prompt, budget, 8, refresh)  # noqa: E731
    assert prompt.cache_bytes == (keys, keys)
    assert count((1, 1, 16), 16) == dense
    assert count((1, 0.25, 16), 0) == dense - 0.75 * gate_and_up
    assert count((0.5, 1, 16), 0) == dense - keys + keys / 4
    assert count((1, 1, 8), 16) == dense + (layers + 2 * keys) / 16


def test_every_run_starts_from_the_same_cache(benchmark):
    model = SOLForCausalLM.from_base(tiny_base("llama"))
    options = benchmark.parse_options(["--new-tokens", "3", *BUDGETS.split()])
    prompt = benchmark.Prompt(model, 20, 2)
    for generate in benchmark.make_variants(model, options).values():
        watch = benchmark.measure(generate, prompt, 3, "cpu")
        assert len(watch.times) == 1 + 4
    expected = model.base(prompt.ids[:, :-1]).past_key_values
    for cache in (prompt.for_sol(), prompt.for_base()):
        assert cache.get_seq_length() == 19
        for layer, theirs in zip(cache.layers, expected.layers, strict=True):
            assert torch.equal(layer.keys, theirs.keys) and torch.equal(layer.values, theirs.values)


def test_bases_with_sliding_layers(benchmark):
    model = SOLForCausalLM.from_base(tiny_base("gemma3_text"))
    options = benchmark.parse_options(["--new-tokens", "3"])
    prompt = benchmark.Prompt(model, 40, 1)
    for generate in benchmark.make_variants(model, options).values():
        assert benchmark.measure(generate, prompt, 3, "cpu").ms > 0


class TestRandomFill:
    def test_both_caches_hold_the_same(self, benchmark):
        model = SOLForCausalLM.from_base(tiny_base("qwen3"))
        prompt = benchmark.RandomPrompt(model, 400, 2, 3)
        ours, again, theirs = prompt.for_sol(), prompt.for_sol(), prompt.for_base()
        assert ours.get_seq_length() == theirs.get_seq_length() == 399
        expected = model.base(prompt.ids[:, :64], output_hidden_states=True)
        torch.testing.assert_close(ours.episode.hidden_state, expected.hidden_states[-1][:, -1])
        for layer, same, copied in zip(ours.layers, again.layers, theirs.layers, strict=True):
            assert torch.equal(layer.keys, copied.keys) and torch.equal(layer.values, copied.values)
            assert torch.equal(layer.keys, same.keys) and layer.keys.data_ptr() != same.keys.data_ptr()
            assert layer.stores()[0].shape[2] == 400 + 3 + 8  # room for every run, and no more
        for layer, processed in zip(ours.layers, expected.past_key_values.layers, strict=True):
            assert torch.equal(layer.keys[:, :, :64], processed.keys)
        assert prompt.cache_bytes == (2 * 2 * 2 * 399 * 8 * 4,) * 2

    def test_drawn_as_the_prompt_is(self, benchmark):
        prompt = benchmark.RandomPrompt(SOLForCausalLM.from_base(tiny_base("llama")), 1200, 2, 3)
        for layer in prompt.for_sol().layers:
            for x in (layer.keys, layer.values):
                deviation, mean = torch.std_mean(x[:, :, :64], dim=(0, 2), correction=0)
                drawn = x[:, :, 64:].transpose(0, 1).flatten(1, 2)
                assert ((drawn.mean(1) - mean).abs() < 0.15 * deviation).all()
                torch.testing.assert_close(drawn.std(1), deviation, rtol=0.1, atol=0)
                assert not torch.equal(x[0, :, 64:], x[1, :, 64:])

    def test_page_index(self, benchmark):
        layer = benchmark.RandomPrompt(SOLForCausalLM.from_base(tiny_base("llama")), 100, 1, 3).for_sol().layers[1]
        upper, lower = layer.page_index(torch.zeros(1, dtype=torch.long), (0, 0))
        pages = layer.keys[:, :, :96].unflatten(2, (12, 8))
        assert torch.equal(upper[:, :, :12], pages.amax(3)) and torch.equal(lower[:, :, :12], pages.amin(3))

    def test_a_short_context_is_a_prompt(self, benchmark):
        model = SOLForCausalLM.from_base(tiny_base("llama"))
        random, prompt = benchmark.RandomPrompt(model, 30, 2, 3).for_sol(), benchmark.Prompt(model, 30, 2).for_sol()
        assert all(torch.equal(a.keys, b.keys) for a, b in zip(random.layers, prompt.layers, strict=True))

    def test_every_variant_goes_on_from_it(self, benchmark, monkeypatch):
        model = SOLForCausalLM.from_base(tiny_base("llama"))
        options = benchmark.parse_options(["--new-tokens", "18", *BUDGETS.split()])
        prompt = benchmark.RandomPrompt(model, 100, 2, 19)
        texts = {}
        for name, generate in benchmark.make_variants(model, options).items():

            def keep(*args, name=name, generate=generate, **kwargs):
                texts[name] = generate(*args, **kwargs)

            watch = benchmark.measure(keep, prompt, 18, "cpu")
            assert len(watch.times) == 1 + 19 and texts[name].shape == (2, 100 + 19)
            assert torch.equal(texts[name][:, :100], prompt.ids)
        assert torch.equal(texts["base"], texts["own cache, dense"])
        assert torch.equal(texts["base"], texts["(1, 1, 16)"])

    def test_beyond_the_positions_of_the_model(self, benchmark, folder, tmp_path, capsys):
        file = tmp_path / "numbers.json"
        command = f"--model {folder} --contexts 300 --new-tokens 3 --repeats 1 --json {file}"
        assert benchmark.main([*command.split(), "--fill", "random"]) == 0
        assert "256 positions" in capsys.readouterr().out
        report = json.loads(file.read_text())
        assert report["fill"] == "random" and [r["context"] for r in report["results"]] == [300] * 5

    @pytest.mark.parametrize("family, context", [("gemma3_text", 100), ("gpt2", 300)])
    def test_bases_that_it_does_not_suit(self, benchmark, tmp_path, capsys, family, context):
        tiny_base(family).save_pretrained(tmp_path)
        command = f"--model {tmp_path} --contexts {context} --fill random"
        assert benchmark.main(command.split()) == 2
        message = {"gemma3_text": "--fill prompt", "gpt2": "256 positions"}[family]
        assert message in capsys.readouterr().err


class TestMemory:
    @pytest.mark.parametrize("family", ["llama", "qwen3", "gpt_neox", "gpt2"])
    def test_bytes_of_a_token(self, benchmark, module, family):
        base = tiny_base(family)
        cache = base(torch.zeros(3, 5, dtype=torch.long), use_cache=True).past_key_values
        held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
        assert module("memory").token_bytes(base)[0] * 3 * 5 == held

    def test_copies(self, benchmark):
        base = tiny_base("llama")
        model, instrumentation = SOLForCausalLM.from_base(base), Instrumentation.of(base)
        options = benchmark.parse_options("--new-tokens 3 --repeats 1 --backend fast --budgets 1,.5,16".split())
        options.bandwidth = 1e9
        variants = benchmark.make_variants(model, options)
        copies = benchmark.copied_bytes(base, options, 1)
        benchmark.run_case(model, variants, options, 20, 1)
        assert copies == instrumentation.copied_bytes == 2 * 2 * 32 * 64 * 4
        benchmark.run_case(model, variants, options, 20, 9)
        assert instrumentation.copied_bytes == benchmark.copied_bytes(base, options, 9) == 0
        for other in ("--backend reference", "--budgets .5,1,8"):
            assert benchmark.copied_bytes(base, benchmark.parse_options(other.split()), 1) == 0

    def test_what_adds_up(self, benchmark, module, monkeypatch):
        base, memory = tiny_base("llama"), module("memory")
        needed = lambda extra, n: memory.needed_bytes(base, benchmark.parse_options(extra.split()), n, 2)  # noqa: E731
        monkeypatch.setattr(memory, "OF_HEAP", 2 * 300 * 2 * 8 * 4)  # keys of 300 tokens, 2 rows
        token, every_head, activations = 2 * 2 * 2 * 8 * 4, 4 * 2 * 8 * 4, (6 * 32 + 3 * 64) * 4
        of_a_token = dict(random=token + every_head, prompt=1.25 * token + activations)
        for fill, expected in of_a_token.items():
            dense = f"--fill {fill} --budgets 1,1,16"
            assert needed(dense, 1) > sum(p.nbytes for p in base.parameters()) + memory.PROCESS
            assert (needed(dense, 9000) - needed(dense, 8000)) / 2000 == expected
        dense, sparse = (f"--fill random --budgets {keep},1,16" for keep in (1, 0.5))
        assert needed(sparse, 8000) - needed(dense, 8000) == 2 * 8000 * token / 8
        assert (needed(dense, 250) - needed(dense, 150)) / 200 == 1.25 * token + every_head
        assert needed("--budgets .5,.5,16", 8) - needed("--budgets .5,1,16", 8) == 2 * 2 * 32 * 64 * 4

    def test_what_is_free(self, benchmark, module, monkeypatch):
        memory = module("memory")
        before = memory.free_bytes("cpu")
        assert before == float("inf") or 1e8 < before < 1e14
        monkeypatch.setattr(memory.Path, "exists", lambda self: False)
        assert memory.free_bytes("cpu") == float("inf")

    def test_what_does_not_fit_is_skipped(self, benchmark, folder, tmp_path, capsys):
        file = tmp_path / "numbers.json"
        command = f"--model {folder} --contexts 20 180 --batch-sizes 1 --new-tokens 3 --repeats 1 --json {file}"
        options = benchmark.parse_options(command.split())
        small, large = (benchmark.needed_bytes(tiny_base("llama"), options, n, 1) for n in (20, 180))
        between = (small + large) / 2e9
        assert benchmark.main([*command.split(), "--memory", str(between)]) == 0
        report = json.loads(file.read_text())
        assert {r["context"] for r in report["results"]} == {20} and report["complete"]
        assert report["skipped"] == [dict(context=180, rows=1, needed_gb=large / 1e9, free_gb=between)]
        assert "    180    1 skipped: needs about 0.9 GB, 0.9 GB are free" in capsys.readouterr().out

    def test_a_shape_that_never_fits_is_not_made(self, benchmark, monkeypatch, capsys):
        load = benchmark.load_base
        only_meta = lambda name, dtype, device: load(name, dtype, {"meta": "meta"}[device])  # noqa: E731
        monkeypatch.setattr(benchmark, "load_base", only_meta)
        assert benchmark.main("--model qwen3-8b --dtype bfloat16 --memory 16 --contexts 512 4096".split()) == 0
        lines = capsys.readouterr().out.splitlines()[-2:]
        assert all("skipped: needs about 2" in line and "16.0 GB are free" in line for line in lines)


def test_what_is_done_is_printed_and_written(benchmark, folder, tmp_path, monkeypatch, capsys):
    file, run_case = tmp_path / "numbers.json", benchmark.run_case

    def stopped(model, variants, options, context, rows):
        if rows == 2:
            raise KeyboardInterrupt
        return run_case(model, variants, options, context, rows)

    monkeypatch.setattr(benchmark, "run_case", stopped)
    command = f"--model {folder} --contexts 20 --batch-sizes 1 2 --new-tokens 3 --repeats 1 --json {file}"
    with pytest.raises(KeyboardInterrupt):
        benchmark.main(command.split())
    report = json.loads(file.read_text())
    assert not report["complete"] and [r["rows"] for r in report["results"]] == [1] * 5
    assert capsys.readouterr().out.splitlines()[-1].startswith("     20    1 (0.2, 0.4, 16)")


def test_plain_table_without_rich(module, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    machine = module("machine")
    machine.show(("way", "us"), [("dense sdpa", "12.50")])
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["way", "us"] and line.split() == ["dense", "sdpa", "12.50"]


def test_stopwatch_counts_only_what_follows_the_first_new_token(benchmark):
    watch = benchmark.Stopwatch()
    watch.times = [0.0, 10.0, 11.0, 14.0]
    watch.spans = [("policy", 9.0, 9.5), ("policy", 10.5, 11.5), ("refresh", 12.0, 12.5)]
    assert watch.ms == 2000
    assert watch.share("policy") == 0.25 and watch.share("refresh") == 0.125


def test_every_variant_runs_all_its_steps(benchmark):
    base = tiny_base("llama", eos_token_id=5)
    base.generation_config.eos_token_id = list(range(1, 99))  # nearly every token would end the text
    model = SOLForCausalLM.from_base(base)
    prompt = benchmark.Prompt(model, 20, 2)
    for generate in benchmark.make_variants(model, benchmark.parse_options(["--new-tokens", "3"])).values():
        assert len(benchmark.measure(generate, prompt, 3, "wall").times) == 1 + 4


@pytest.mark.parametrize("option", ["--contexts 0", "--batch-sizes 0", "--new-tokens 0", "--repeats 0"])
def test_sizes_must_be_positive(benchmark, option, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(option.split())
    assert "at least 1" in capsys.readouterr().err


def test_context_must_fit_the_model(benchmark, folder, capsys):
    assert benchmark.main(["--model", folder, "--contexts", "250", "--new-tokens", "8"]) == 2
    assert "256 positions" in capsys.readouterr().err


PUBLISHED = {
    "llama-3.2-1b": (1_235_814_400, 64, True),
    "qwen3-4b": (4_022_468_096, 128, True),
    "qwen3-8b": (8_190_735_360, 128, False),
}
"""Weights, channels of a head, and whether the LM head is the embedding."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_shapes_are_those_of_their_names(module, name):
    base = module("machine").load_base(name, "bfloat16", "meta")
    weights, head_dim, tied = PUBLISHED[name]
    assert sum(p.numel() for p in base.parameters()) == weights
    attention = base.model.layers[0].self_attn
    assert attention.q_proj.out_features == 32 * head_dim and attention.k_proj.out_features == 8 * head_dim
    assert all(hasattr(attention, norm) == name.startswith("qwen3") for norm in ("q_norm", "k_norm"))
    assert (base.lm_head.weight is base.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False])
def test_random_weights(module, monkeypatch, dtype, tied):
    machine = module("machine")
    small = dict(vocab_size=99, hidden_size=32, intermediate_size=80, num_hidden_layers=2, head_dim=8)
    sizes = dict(small, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied)
    monkeypatch.setitem(machine.SHAPES, "small", dict(sizes, model_type="qwen3"))
    monkeypatch.setattr(machine, "BLOCK", 1009)
    monkeypatch.setattr(torch.nn.init, "normal_", None)  # nothing is drawn weight by weight
    base = machine.load_base("small", dtype, "cpu")

    assert (base.lm_head.weight is base.model.embed_tokens.weight) == tied
    smallest = torch.finfo(getattr(torch, dtype)).smallest_normal
    for name, weight in base.named_parameters():
        assert weight.dtype == getattr(torch, dtype)
        assert (weight == 1).all() if "norm" in name else weight.float().std().item() == pytest.approx(0.02, rel=0.1)
        assert weight.abs().min() > smallest and weight.isfinite().all()
        assert weight.dim() == 1 or len(weight.unique(dim=0)) == len(weight)
    gates = [layer.mlp.gate_proj.weight for layer in base.model.layers]
    assert not torch.equal(*gates)
    assert base(torch.tensor([[1, 2, 3]])).logits.float().std() > 0
    assert torch.nn.init.normal_ is None


def test_attention_alone(module, monkeypatch, tmp_path, capsys):
    attention, file = module("attention"), tmp_path / "numbers.json"
    monkeypatch.setattr(attention, "copy_bandwidth", lambda device: 1e9)
    command = f"--contexts 40 --batch-sizes 2 --token-keep .2 --repeats 1 --megabytes 1 --json {file}"
    assert attention.main(command.split()) == 0
    results = json.loads(file.read_text())["results"]
    ways = ["gather", "masked"] + (["numba"] if numba_pages.has_numba() else [])
    assert [r["way"] for r in results] == ["dense sdpa", *ways, *ways]
    assert all(r["us"] > 0 and r["bound"] > 0 for r in results) and results[0]["speed_up"] == 1
    assert capsys.readouterr().out.count("dense sdpa") == 1


class TestLinearLayers:
    @pytest.fixture
    def linear(self, module, monkeypatch):
        linear = module("linear")
        small = dict(vocab_size=64, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_key_value_heads=1)
        monkeypatch.setattr(linear, "SMOLLM2", {**small, "head_dim": 4})
        monkeypatch.setattr(linear, "BYTES_OF_WEIGHTS", 1 << 11)
        monkeypatch.setattr(linear, "copy_bandwidth", lambda device: 1e9)
        return linear

    @pytest.mark.skipif(not has_onednn(), reason="torch without oneDNN, or another processor")
    def test_table_and_json(self, linear, tmp_path, capsys):
        file = tmp_path / "numbers.json"
        assert linear.main(["--rows", "1", "3", "--repeats", "1", "--json", str(file)]) == 0
        report = json.loads(file.read_text())
        assert report["machine"]["copy GB/s"] == 1
        shapes = [(line["outputs"], line["channels"], line["rows"]) for line in report["results"]]
        sizes = [(8, 8), (4, 8), (16, 8), (8, 16), (64, 8)]
        assert shapes == [(*size, rows) for size in sizes for rows in (1, 3)]
        assert all({"blas", "onednn"} <= set(line["times"]) for line in report["results"])
        assert all(taken > 0 for line in report["results"] for taken in line["times"].values())
        assert "64 x 8" in capsys.readouterr().out

    def test_planes(self, linear, module, monkeypatch, tmp_path, capsys):
        planes, file = module("planes"), tmp_path / "numbers.json"
        monkeypatch.setattr(planes, "weights_of", linear.weights_of)
        monkeypatch.setattr(planes, "BYTES_OF_WEIGHTS", 1 << 11)
        before = torch.get_num_threads()
        try:
            assert planes.main(["--rows", "1", "3", "--repeats", "1", "--json", str(file)]) == 0
        finally:
            torch.set_num_threads(before)
        results = json.loads(file.read_text())["results"]
        assert len(results) == 3 * 2 * 2 and all(time > 0 for line in results for time in line["times"].values())
        assert all(list(line["times"]) == ["dense", "4", "5", "6", "8"] for line in results)
        assert "64 x 8" in capsys.readouterr().out

    def test_without_onednn(self, linear, monkeypatch, capsys):
        monkeypatch.setattr(linear, "has_onednn", lambda: False)
        assert linear.main([]) == 1 and "oneDNN" in capsys.readouterr().err

    @pytest.mark.parametrize("argument", ["--rows=0", "--repeats=0"])
    def test_bad_numbers(self, linear, argument):
        with pytest.raises(SystemExit):
            linear.main([argument])
