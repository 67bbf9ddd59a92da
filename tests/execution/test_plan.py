# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A step that was not computed as planned raises and names the missing parts; coverage lists the reached layers."""

import pickle
import threading

import pytest
import torch

from sol_hf import SOLConfig, SOLForCausalLM
from sol_hf.errors import PlanNotExecutedError, UnsupportedAxisError
from sol_hf.execution.coverage import ranges
from sol_hf.execution.executors import EXECUTORS
from sol_hf.execution.instrumentation import Instrumentation
from sol_hf.execution.plan import StepPlan, active_forward
from sol_hf.selection.rule import SelectionRule
from support.bases import tiny_base
from support.cases import SETTINGS, control, prompts, sol_model


GREEDY = {"max_new_tokens": 4, "do_sample": False}


class InAnotherThread(torch.nn.Module):
    """Runs a layer in another thread, which has no plan."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *args, **kwargs):
        found = []
        with torch.no_grad():
            thread = threading.Thread(target=lambda: found.append(self.layer(*args, **kwargs)))
            thread.start()
            thread.join()
        return found[0]


def test_a_layer_in_another_thread_is_named():
    model = sol_model()
    model.base.model.layers[0] = InAnotherThread(model.base.model.layers[0])
    with pytest.raises(PlanNotExecutedError, match="`token_keep` in the attention of layer 0") as caught:
        model.generate(prompts(), **GREEDY, token_keep=0.5)
    assert caught.value.left_out == {"token_keep": ["the attention of layer 0"]}
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gpt2", "phi3"])
def test_every_part_carries_out_its_share(family):
    """No step raises, but a step without one of the parts does."""
    model, seen = sol_model(family), []
    original = StepPlan.check_done

    def check(plan):
        seen.append((set(plan.levels), {axis: len(parts) for axis, parts in plan.parts.items()}))
        original(plan)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepPlan, "check_done", check)
        model.generate(prompts(), **GREEDY, token_keep=0.2, mlp_keep=0.4, bits=3)
    coverage = model.coverage()
    assert seen and all(parts == {axis: len(coverage.layers[axis]) for axis in parts} for _, parts in seen)
    assert {"token_keep", "mlp_keep", "bits"} in [axes for axes, _ in seen]


def test_a_plan_is_checked_only_where_the_forward_ended():
    model = sol_model()
    cache = model.new_cache()
    parts = Instrumentation.of(model.base).parts(cache)
    plan = StepPlan(cache, SelectionRule(), {"bits": torch.tensor([4.0])}, parts=parts)
    with pytest.raises(KeyError, match="own"), active_forward(plan):
        raise KeyError("own")
    with (
        pytest.raises(PlanNotExecutedError, match="`bits` in the MLP of layer 0, the MLP of layer 1"),
        active_forward(plan),
    ):
        pass


def test_many_parts_are_counted():
    error = PlanNotExecutedError({"bits": [f"the MLP of layer {layer}" for layer in range(9)]})
    assert "the MLP of layer 3 and 5 more" in str(error)


def test_coverage_of_a_base_that_is_reached_everywhere():
    coverage = sol_model().coverage()
    assert coverage.layers == {"token_keep": (0, 1), "mlp_keep": (0, 1), "bits": (0, 1)}
    assert str(coverage).splitlines() == [
        "LlamaForCausalLM, 2 decoder layers",
        "token_keep  2 of 2 layers: 0-1",
        "mlp_keep    2 of 2 layers: 0-1",
        "bits        2 of 2 layers: 0-1",
    ]


def test_coverage_with_sliding_layers():
    assert sol_model("gemma3_text").coverage().layers["token_keep"] == (1,)
    assert sol_model("mistral").coverage().layers["token_keep"] == (0, 1)  # all of them slide


def test_coverage_gives_the_reason():
    model = control(tiny_base("jetmoe"))
    coverage = model.coverage()
    assert coverage.layers["mlp_keep"] == () and "gets its tokens in another way" in coverage.reasons["mlp_keep"]
    assert "mlp_keep    no layer (" in str(coverage)


def test_ranges():
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8" and ranges([]) == ""


def test_an_axis_without_executor_is_refused(monkeypatch):
    model = SOLForCausalLM.from_base(tiny_base("llama"), SOLConfig(**SETTINGS))
    assert "bits" in EXECUTORS
    monkeypatch.delitem(EXECUTORS._members, "bits")
    with pytest.raises(UnsupportedAxisError, match="The axis `bits` has no executor: register one"):
        model.generate(prompts(), **GREEDY, bits=8)


def test_a_base_that_runs_its_layers_several_times():
    """Two stacks of two layers run three times each per token: every time has a cache layer of its own."""
    pytest.importorskip("transformers.models.hrm_text")
    model = sol_model("hrm_text", num_hidden_layers=1, H_cycles=2, L_cycles=2)
    assert model.coverage().layers["token_keep"] == tuple(range(6))
    outputs = {
        backend: model.score(prompts(), context_length=12, return_logits=True, token_keep=0.3, backend=backend)
        for backend in ("reference", "fast")
    }
    assert (outputs["reference"].realised[:, 0] < 0.5).all()
    torch.testing.assert_close(outputs["fast"].logits, outputs["reference"].logits)
