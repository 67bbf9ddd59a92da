# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A bench: which way is called the fastest, what is measured, and on which text."""

import pytest
import torch

from sol_hf.evaluation.bench import Case, Quality, fastest, measure_case, usable_ways
from sol_hf.evaluation.bench_report import BenchReport
from sol_hf.evaluation.bench_text import blocks_of, prompt_of
from sol_hf.evaluation.speed import Speed
from sol_hf.evaluation.ways import model_for_settings, ways_of_settings
from support.bases import tiny_base


def case(**speed_ups: float) -> Case:
    names = {"base": "base", "dense": "dense, ours"}
    speeds = tuple(
        Speed(names.get(name, name), (10.0 * x,), speed_up=x, same_tokens=1.0) for name, x in speed_ups.items()
    )
    return Case(512, 1, speeds, {speed.name: 1.0 for speed in speeds}, {})


def quality(divergence: float) -> Quality:
    return Quality((divergence, 0.001), (divergence, 0.001), 0.9)


def report(found: Case, qualities: dict[str, Quality]) -> str:
    return BenchReport("m", "", "", 0.05, (found,), qualities, {}).advice(found)


def test_the_fastest_is_among_those_that_change_little():
    qualities = {"a": quality(0.01), "b": quality(0.2)}
    found = case(base=1.0, dense=1.5, a=2.0, b=3.0)
    assert fastest(found, qualities, 0.05).name == "a" and fastest(found, qualities, 0.5).name == "b"
    assert report(found, qualities) == (
        "fastest here: a, 2.00 times as fast as transformers; with the same text: dense, ours, 1.50 times"
    )


def test_a_report_fits_eighty_columns():
    way = "8 bits, keys .2"
    speeds = tuple(Speed(name, (1.25, 0.987), speed_up=12.5, same_tokens=1.0) for name in ("base", "dense, ours", way))
    found = Case(4096, 1, speeds, {speed.name: 12.5 for speed in speeds}, {way: 0.333})
    shown = str(BenchReport("m", "float32", "texts", 0.05, (found,), {way: quality(0.0123)}, {}))
    assert max(map(len, shown.splitlines())) <= 80
    head, _, _, row, *_ = shown.splitlines()[3:]
    assert row.startswith(way) and len(row) == len(head) and row.split()[-3:] == ["0.012", "+0.012", "0.90"]


def test_without_a_measured_quality_only_the_same_text_is_advised():
    assert report(case(base=1.0, dense=1.5, a=2.0), {}).startswith("fastest here: dense, ours, 1.50 times")
    assert report(case(base=1.0, dense=0.5, a=2.0), {}) == "fastest here: transformers' own generate"


def test_the_text_of_dense_steps_is_that_of_the_base_and_a_prompt_is_processed_twice(monkeypatch):
    base = tiny_base("llama")
    model = model_for_settings(base)
    ways, refused = usable_ways(model, ways_of_settings(model))
    assert not refused
    lengths, own = [], base.forward

    def forward(*args, **kwargs):
        lengths.append(kwargs["input_ids"].shape[1])
        return own(*args, **kwargs)

    monkeypatch.setattr(base, "forward", forward)
    ids = torch.randint(3, 99, (2, 30))
    found = measure_case(model, ways, ids, steps=5, rounds=2)
    assert lengths.count(29) == 2 and all(length < 9 for length in lengths if length != 29)  # checks of drafts, too
    assert [len(speed.tokens_per_second) for speed in found.speeds] == [2] * 6
    assert found.speeds[1].same_tokens == 1


def test_what_a_base_cannot_do_is_left_out_with_the_reason():
    base = tiny_base("llama")
    base.model.layers[0].self_attn.q_proj = torch.nn.Sequential(base.model.layers[0].self_attn.q_proj)
    model = model_for_settings(base.to(torch.float16))
    ways, refused = usable_ways(model, ways_of_settings(model))
    assert [way.name for way in ways][:3] == ["base", "dense, ours", "lossless"]
    assert set(refused) | {way.name for way in ways} == {way.name for way in ways_of_settings(model)}


def test_prompts_and_blocks_are_pieces_of_the_text():
    tokens = torch.arange(50)
    assert prompt_of(tokens, 60, 2).tolist() == [[i % 50 for i in range(60)], [(997 + i) % 50 for i in range(60)]]
    blocks = blocks_of(tokens, 3, 16)
    assert blocks[:, 0].tolist() == [0, 16, 32] and blocks.shape == (3, 16)
    with pytest.raises(ValueError, match="need 64"):
        blocks_of(tokens, 4, 16)
