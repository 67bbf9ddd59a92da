# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""An axis, a criterion and a controller of another package work everywhere without a change to this package.

The axis `mlp_noise` is a toy: at its level .5, half of the MLP output is multiplied by a fixed pattern.
"""

import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence

import pytest
import torch
from torch import nn

from sol_hf import Budget, Controller, SOLConfig, SOLForCausalLM, register_controller
from sol_hf.budget.axes import AXES
from sol_hf.controllers.registry import CONTROLLERS
from sol_hf.episodes.rollouts import prefill, roll_out
from sol_hf.errors import PlanNotExecutedError
from sol_hf.evaluation.policy_evaluation import evaluate_budgets
from sol_hf.evaluation.sweep.sweep import Sweep, SweepConfig
from sol_hf.evaluation.sweep.table import read_table
from sol_hf.execution.executors import EXECUTORS, AxisExecutor, Change, register_executor
from sol_hf.execution.mlp.discovery import find_mlps
from sol_hf.execution.plan import ACTIVE
from sol_hf.selection.channels import kept_count
from sol_hf.selection.criterion import CRITERIA, Criterion, register_criterion
from sol_hf.selection.rule import Selection
from support.bases import tiny_base
from support.cases import SETTINGS, prompts
from support.extra_axis import FOUR_LEVELS, MLP_NOISE, registered
from support.trainers import CONTEXT, STEPS, blocks, changed, trainer_of, weights


GREEDY = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
BUDGET = {"token_keep": 0.6, "mlp_keep": 0.75, "bits": 8, "mlp_noise": 0.75}


class NoiseExecutor(AxisExecutor):
    """A forward hook on every MLP."""

    def __init__(self, base):
        self.mlps = find_mlps(base)

    def changes(self) -> Iterable[Change]:
        return [Change("mlp_noise", mlp, self._hook(mlp)) for mlp in self.mlps]

    def parts(self, cache) -> Mapping[Hashable, str]:
        return {mlp: f"the noise of layer {layer}" for layer, mlp in enumerate(self.mlps)}

    def layers(self, cache) -> Sequence[int]:
        return range(len(self.mlps))

    @staticmethod
    def _hook(mlp: nn.Module) -> Callable[[], Callable[[], None]]:
        return lambda: mlp.register_forward_hook(add_noise).remove


def add_noise(module: nn.Module, arguments: tuple, output: torch.Tensor) -> torch.Tensor | None:
    context = ACTIVE.get()
    level = None if context is None or context.plan is None else context.plan.levels.get("mlp_noise")
    if level is None:
        return None
    context.plan.mark_done("mlp_noise", module)
    pattern = torch.linspace(-1, 1, output.shape[-1], dtype=output.dtype, device=output.device)
    return output * (1 + (1 - level.to(output)).view(-1, *[1] * (output.dim() - 1)) * pattern)


class Latest(Criterion):
    """Reads the most recent keys, the same for all heads."""

    heads_may_differ = False

    def select(self, candidates, token_keep, rule):
        kept = kept_count(token_keep, candidates.slots - candidates.first_key)
        place = torch.arange(int(kept.max()), device=kept.device)
        ranks = candidates.slots - 1 - place - candidates.page_origin[:, None]
        return Selection(ranks[:, None], (place < kept[:, None])[:, None])


class Alternating(Controller):
    """Chooses the cheapest and the most expensive action in turn."""

    needs_budget = False
    rows_are_independent = True

    def __call__(self, observation):
        cost = observation.action_space.ratios_on(observation.controllable.device).sum(dim=-1)
        return (cost if observation.step % 2 else -cost).expand(observation.rows, -1)


@pytest.fixture(autouse=True)
def extended():
    """The package with the additions, which are removed afterwards."""
    with registered():
        register_executor("mlp_noise")(NoiseExecutor)
        register_criterion("latest", Latest())
        register_controller("alternating", lambda model, number: Alternating())
        try:
            yield
        finally:
            EXECUTORS.unregister("mlp_noise")
            CRITERIA.unregister("latest")
            CONTROLLERS.unregister("alternating")
    assert "mlp_noise" not in AXES


@pytest.fixture
def model() -> SOLForCausalLM:
    torch.manual_seed(3)
    config = SOLConfig(**{**SETTINGS, **FOUR_LEVELS}, criterion="latest")
    made = SOLForCausalLM.from_base(tiny_base("llama", torch.float64), config)
    made.policy.double()
    return made


def token_blocks(number: int = 4) -> torch.Tensor:
    return torch.tensor(blocks(number)["input_ids"])


def test_generate_keeps_a_budget_on_four_axes(model):
    output = model.generate(prompts(), **GREEDY, **BUDGET)
    assert output.realised.shape == (2, 4)
    wanted = torch.tensor([BUDGET[axis] for axis in model.action_space.axis_names])
    assert (output.realised <= wanted + model.action_space.scales * 0.5).all()
    same = model.generate(prompts(), **GREEDY, budget=Budget(**BUDGET))
    assert torch.equal(same.sequences, output.sequences)


def test_the_axis_changes_what_is_computed(model):
    alone = model.score(prompts(), context_length=12, mlp_noise=0.5, return_logits=True)
    dense = model.score(prompts(), context_length=12, return_logits=True)
    assert torch.equal(alone.realised, torch.tensor([[1.0, 1.0, 16.0, 0.5]] * 2))
    assert not torch.allclose(alone.logits, dense.logits)
    whole = model.score(prompts(), context_length=12, **dict(zip(BUDGET, model.action_space.dense, strict=True)))
    assert torch.equal(whole.logprobs, dense.logprobs)


def test_a_part_that_does_not_carry_it_out_is_named(model, monkeypatch):
    monkeypatch.setattr(NoiseExecutor, "_hook", staticmethod(lambda mlp: lambda: lambda: None))
    with pytest.raises(PlanNotExecutedError, match="`mlp_noise` in the noise of layer 0, the noise of layer 1"):
        model.generate(prompts(), **GREEDY, mlp_noise=0.5)


def test_coverage_names_the_axis(model):
    assert str(model.coverage()).splitlines()[-1].split() == ["mlp_noise", "2", "of", "2", "layers:", "0-1"]


def test_the_criterion_decides_what_is_read(model):
    """Of 20 keys the latest 4 are read: changes of earlier keys have no effect."""
    ids, other = prompts(1, 21), prompts(1, 21)
    other[:, :12] = prompts(1, 12, seed=6)
    options = dict(context_length=19, token_keep=0.2, exact=True, return_logits=True, backend="reference")
    model.base.model.layers = model.base.model.layers[:1]  # deeper layers see the others through the states they read
    model.base.config.num_hidden_layers = 1
    one, two = (model.score(x, **options).logits for x in (ids, other))
    dense = [model.score(x, context_length=19, return_logits=True).logits for x in (ids, other)]
    assert torch.equal(one, two) and not torch.equal(*dense)


def test_a_controller_from_outside(model):
    output = model.generate(prompts(), **GREEDY, controller=Alternating())
    assert output.actions.tolist() == [[0, model.action_space.dense_id] * 4] * 2


def test_a_rollout(model):
    tokens = token_blocks()
    targets = torch.tensor([[0.6, 0.75, 0.5, 0.75]]).repeat(8, 1)
    rollouts = roll_out(model, prefill(model, tokens, CONTEXT), tokens, targets, Alternating())
    assert rollouts.actions.shape == (8, STEPS) and rollouts.scalars.shape[-1] == 2 + 2 * 4 + 1
    assert {0, model.action_space.dense_id} == set(rollouts.actions.flatten().tolist())


def test_a_training_step(model, tmp_path):
    model.policy.float()
    model.base.float()
    before, base = weights(model.policy), weights(model.base)
    trainer = trainer_of(tmp_path, model, max_steps=1)
    trainer.train()
    moved = changed(before, model.policy)
    assert {"scalar_features.0.weight", "action_head.weight", "budget_head.0.weight"} <= moved
    assert changed(base, model.base) == set()
    assert any("mlp_noise" in name for entry in trainer.state.log_history for name in entry)


def test_a_sweep_row(model, tmp_path):
    budgets = (tuple(BUDGET[axis] for axis in model.action_space.axis_names),)
    config = SweepConfig(controllers=("policy", "fixed", "alternating"), budgets=budgets, context_length=CONTEXT)
    Sweep(model, token_blocks(), config, tmp_path).run()
    rows = {row["controller"]: row for row in read_table(tmp_path)}
    assert rows.keys() == {"dense", "policy", "fixed", "alternating"}
    assert all(0 < row["realised_mlp_noise"] <= 1 for row in rows.values())
    assert rows["alternating"]["realised_mlp_noise"] == pytest.approx(0.75)
    assert rows["alternating"]["bytes_per_token"] < rows["dense"]["bytes_per_token"] * 2


def test_an_evaluation(model):
    budget = tuple(BUDGET[axis] for axis in model.action_space.axis_names)
    options = dict(hard=True, budget_horizon="episode")
    (found,) = evaluate_budgets(model, token_blocks(), CONTEXT, [budget], **options)
    assert len(found.realised) == 4 and all(a <= b + 1e-6 for a, b in zip(found.realised, budget, strict=True))


def test_a_policy_is_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["criterion"] == "latest"
    assert stored["mlp_noise"] == [0.5, 1.0] and stored["axes"] == ["token_keep", "mlp_keep", "bits", "mlp_noise"]
    again = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
    again.policy.double()
    assert again.action_space == model.action_space
    one, two = (x.generate(prompts(), **GREEDY, **BUDGET).sequences for x in (model, again))
    assert torch.equal(one, two)
    EXECUTORS.unregister("mlp_noise")
    AXES.unregister("mlp_noise")
    try:
        with pytest.raises(ValueError, match="mlp_noise"):
            SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
    finally:
        AXES.register("mlp_noise", MLP_NOISE)
        register_executor("mlp_noise")(NoiseExecutor)
