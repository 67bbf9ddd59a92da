# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Captured steps that read planes of weights, or single tokens by their index; see `test_cuda_graphs.py`."""

import pytest
import torch

from execution.test_cuda_graphs import Launches, captured_generation, graphs, run, small_model
from sol_hf.execution.cuda_graphs import CapturedForward
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
    schedule = mixed_schedule(model, 6, rows=2)
    plain, mine = (
        run(model, schedule, inputs, capture=capture, steps=6, bits_backend="nested") for capture in (False, True)
    )
    assert torch.equal(mine[0], plain[0]) and isinstance(graphs(mine[2]).get("step"), CapturedForward)
    torch.testing.assert_close(mine[1], plain[1], atol=1e-4, rtol=1e-4)


def test_captured_steps_read_planes(traces):
    """Every row reads its own number of bits, also the original weights, by the same operations at every step."""
    model, inputs = small_model(bits=[4, 7, 16], mlp_keep=[1.0], token_keep=[1.0]), left_padded(PADDED)
    schedule = mixed_schedule(model, 3, rows=2)
    plain = run(model, schedule, inputs, capture=False, steps=3, **NESTED)
    mine = run(model, schedule, inputs, capture=True, steps=3, **NESTED)
    assert torch.equal(mine[0], plain[0]) and isinstance(graphs(mine[2]).get("step"), CapturedForward)
    torch.testing.assert_close(mine[1], plain[1], atol=1e-4, rtol=1e-4)
    steps = traces[1]
    assert len(steps) == 3 and all(seen == steps[0] for seen in steps)
    assert sum(name == "multiply_planes" for name, _ in steps[0]) == 8  # seven linear layers, and the LM head


SLOW = [pytest.param(change, marks=pytest.mark.slow) for change in ("weights", "backend")]


@pytest.mark.parametrize("change", ["nothing", "planes dropped", *SLOW])
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
