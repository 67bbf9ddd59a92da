# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Captured steps that read planes of weights, or single tokens by their index; see `test_cuda_graphs.py`."""

import pytest
import torch

from execution.test_cuda_graphs import Launches, captured_generation, graphs, run, small_model
from sol_hf.cache.sketch_index import SketchIndex
from sol_hf.execution.cuda_graphs import CapturedForward
from sol_hf.execution.plan import RefreshPlan
from sol_hf.kernels.cuda import triton_support
from support.cases import left_padded, mixed_schedule, prompts


pytest.importorskip("triton")

NESTED = {"bits_backend": "nested", "kv_refresh": False}
PADDED = [prompts(1, 13, seed=4)[0], prompts(1, 9, seed=5)[0]]


@pytest.fixture(autouse=True)
def kernels_run_here(monkeypatch):
    monkeypatch.setattr(triton_support, "DEVICES", ("cuda", "cpu"))


@pytest.fixture
def traces(monkeypatch):
    """The operations of every captured forward, by its number of tokens; none of them may wait."""
    seen, run_step = {}, CapturedForward.run

    def traced(self):
        with Launches() as launches:
            answer = run_step(self)
        seen.setdefault(self.number, []).append(launches.seen)
        return answer

    monkeypatch.setattr(CapturedForward, "run", traced)
    return seen


@pytest.mark.slow
def test_captured_steps_read_planes_for_kept_channels_and_neurons():
    kept = {"mlp_keep": [0.5, 1.0], "neuron_keep": [0.5, 1.0], "token_keep": [0.5, 1.0]}
    model, inputs = small_model(bits=[5, 8], **kept), left_padded(PADDED)
    schedule = mixed_schedule(model, 4, rows=2)
    plain, mine = (
        run(model, schedule, inputs, capture=capture, steps=4, bits_backend="nested") for capture in (False, True)
    )
    assert torch.equal(mine[0], plain[0]) and isinstance(graphs(mine[2]).get("step"), CapturedForward)
    torch.testing.assert_close(mine[1], plain[1], atol=1e-4, rtol=1e-4)


def test_captured_steps_read_planes(traces):
    """Every row reads its own number of bits, also the original weights, by the same operations at every step."""
    model, inputs = small_model(bits=[4, 7, 16], mlp_keep=[1.0], token_keep=[1.0]), left_padded(PADDED)
    schedule = mixed_schedule(model, 2, rows=2)
    plain, mine = (run(model, schedule, inputs, capture=capture, steps=2, **NESTED) for capture in (False, True))
    assert torch.equal(mine[0], plain[0]) and isinstance(graphs(mine[2]).get("step"), CapturedForward)
    torch.testing.assert_close(mine[1], plain[1], atol=1e-4, rtol=1e-4)
    steps = traces[1]
    assert len(steps) == 2 and all(seen == steps[0] for seen in steps)
    assert sum(name == "multiply_planes" for name, _ in steps[0]) == 8  # seven linear layers, and the LM head


@pytest.mark.slow
def test_a_captured_refresh_reads_planes(monkeypatch):
    seen = []
    monkeypatch.setattr(RefreshPlan, "check_done", lambda plan: seen.append((plan.rows_on_device, dict(plan.levels))))
    model = small_model(bits=[4, 7, 16], mlp_keep=[1.0], token_keep=[1.0], episode_length=3)
    inputs, space = left_padded(PADDED), model.action_space
    lines = [(16, 16), (4, 16), (7, 16), (16, 4), (4, 4)]
    schedule = torch.tensor([[space.index(1.0, 1.0, bits) for bits in line] for line in lines])
    options = {**NESTED, "kv_refresh": True, "steps": 5}
    plain, mine = (run(model, schedule, inputs, capture=capture, **options) for capture in (False, True))
    assert torch.equal(mine[0], plain[0]) and isinstance(graphs(mine[2]).get("refresh"), CapturedForward)
    torch.testing.assert_close(mine[1], plain[1], atol=1e-4, rtol=1e-4)
    assert [rows is not None for rows, _ in seen] == [False, True]
    assert all(levels["bits"].tolist() == [8.0, 16.0] for _, levels in seen)


SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in ("nothing", "weights", "backend")]


@pytest.mark.parametrize("change", ["planes dropped", *SLOW])
def test_steps_that_would_read_other_planes_are_captured_anew(change):
    model = small_model(bits=[6, 16], mlp_keep=[1.0], token_keep=[1.0])
    cache, settings = model.new_cache(), {"bits": 6, "token_keep": None, "mlp_keep": None, "steps": 1, **NESTED}
    output = captured_generation(model, cache, prompts(1, 9), cuda_graphs=True, **settings)
    step = graphs(cache)["step"]
    if change == "planes dropped":
        model.drop_copies()
    elif change == "weights":
        with torch.no_grad():
            model.base.lm_head.weight.mul_(2)
    elif change == "backend":
        settings["bits_backend"] = "fake"
    captured_generation(model, cache, output, cuda_graphs=True, **settings)
    assert (graphs(cache)["step"] is step) == (change == "nothing")


SKETCH = {"criterion": "sketch", "bits": [16], "mlp_keep": [1.0], "token_keep": [0.4, 0.7, 1.0]}


def check_sketch(fields, lengths, steps, **options) -> None:
    """Captured steps give the text, the logits and the index of the reference."""
    model = small_model(**{**SKETCH, **fields})
    inputs = left_padded([prompts(1, length, seed=length)[0] for length in lengths])
    schedule = mixed_schedule(model, steps, rows=len(lengths))
    plain, mine = (run(model, schedule, inputs, capture=capture, steps=steps, **options) for capture in (False, True))
    assert torch.equal(mine[0], plain[0]) and isinstance(graphs(mine[2]).get("step"), CapturedForward)
    torch.testing.assert_close(mine[1], plain[1], atol=1e-4, rtol=1e-4)
    layers, rule = [cache.layers[0] for _, _, cache in (mine, plain)], model.config.selection_rule
    assert layers[0].length == layers[1].length and layers[0]._sketch.tokens == layers[0].length
    padding = mine[2].padding
    known = padding.to(layers[0].keys.device), (int(padding.min()), int(padding.max()))
    fresh = SketchIndex(rule.index_bits)
    fresh.update(layers[0].keys, layers[0].length, *known)
    for row, first in enumerate(padding.tolist()):
        for found, right in zip(layers[0]._sketch.stores[:2], fresh.stores[:2], strict=True):
            assert torch.equal(found[row, :, first : layers[0].length], right[row, :, first : layers[0].length])


def test_captured_steps_read_single_tokens(traces):
    """The mean of the keys changes at 16 tokens of a row: its codes are then made anew on the device."""
    check_sketch({"selection": "layer"}, (17, 13), 4, kv_refresh=False)
    steps = traces[1]
    assert len(steps) == 4 and all(seen == steps[0] for seen in steps)
    kernels = {"append_tokens", "encode_tokens", "score_tokens", "select_tokens", "attend_pages"}
    assert kernels <= {name for name, _ in steps[0]}


@pytest.mark.slow
@pytest.mark.parametrize("selection, lengths", [("head", (30, 2)), ("group", (21, 14)), ("layer", (30, 2))])
def test_captured_steps_and_refreshes_read_single_tokens(traces, selection, lengths):
    fields = {"selection": selection, "index_bits": 3, "bits": [5, 16]}
    check_sketch(fields, lengths, 9)
    for forwards in traces.values():
        assert all(seen == forwards[0] for seen in forwards)
    assert {len(forwards) for forwards in traces.values()} == {9, 1}  # steps, and a KV refresh


@pytest.mark.slow
def test_captured_steps_read_single_tokens_and_planes():
    fields = {"selection": "layer", "bits": [5, 16], "neuron_keep": [0.5, 1.0]}
    check_sketch(fields, (20, 9), 8, bits_backend="nested")


@pytest.mark.slow
@pytest.mark.parametrize("added", [1, 5])
def test_the_index_of_a_second_turn_is_that_of_its_keys(added):
    model = small_model(**SKETCH, selection="layer")
    caches, settings = [model.new_cache() for _ in range(2)], {"mlp_keep": None, "token_keep": 0.5, "steps": 2}
    for cache, options in zip(caches, ({"cuda_graphs": True}, {"backend": "fast"}), strict=True):
        output = captured_generation(model, cache, prompts(1, 13), **settings, **options)
        more = torch.cat([output, prompts(1, added, seed=8).to(output.device)], dim=1)
        cache.last = captured_generation(model, cache, more, **settings, **options)
    assert torch.equal(caches[0].last, caches[1].last) and "step" in graphs(caches[0])


def test_steps_that_read_all_tokens_keep_no_codes():
    model = small_model(**{**SKETCH, "mlp_keep": [0.5, 1.0]}, selection="layer")
    cache = model.new_cache()
    settings = {"token_keep": None, "mlp_keep": 0.5, "steps": 1}
    output = captured_generation(model, cache, prompts(1, 13), cuda_graphs=True, **settings)
    assert graphs(cache)["step"].index_bits is None and cache.layers[0]._sketch is None
    expected = captured_generation(model, None, prompts(1, 13), backend="reference", **settings)
    assert torch.equal(output, expected)
