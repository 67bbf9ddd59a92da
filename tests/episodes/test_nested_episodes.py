# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rollouts and measured costs are computed as `generate` computes steps by the model's stored options."""

import pytest
import torch

from sol_hf import ScheduleController, UnsupportedAxisError
from sol_hf.episodes.cost_model import Allocation, level_costs
from sol_hf.episodes.counterfactuals import Probes, measure
from sol_hf.episodes.measurements import Measurements
from sol_hf.episodes.rollouts import prefill, roll_out
from sol_hf.episodes.step_settings import StepSettings
from sol_hf.evaluation.oracle import measure_damage
from sol_hf.execution.instrumentation import Instrumentation
from support.bases import tiny_base
from support.cases import control
from support.new_axes import READ, nested_model


STEPS, CONTEXT = 6, 20


def blocks_of(rows: int = 2, steps: int = STEPS) -> torch.Tensor:
    return torch.randint(3, 99, (rows, CONTEXT + steps + 1), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("criterion", [{}, {"selection": "group"}, {"criterion": "quest", "selection": "head"}])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_rollout_replays_what_generate_does_on_four_axes(criterion, backend):
    model = nested_model(**criterion, anchor_pages=criterion.get("criterion") == "quest")
    model.generation_config.backend = backend
    prompt = torch.randint(3, 99, (2, 20), generator=torch.Generator().manual_seed(1))
    budget = dict(token_keep=[0.4, 0.8], mlp_keep=0.7, bits=[5.5, 9], neuron_keep=0.7)
    settings = dict(do_sample=False, kv_refresh=False, return_dict_in_generate=True, output_logits=True)
    output = model.generate(prompt, **budget, **settings, max_new_tokens=STEPS + 1, min_new_tokens=STEPS + 1)
    assert len(output.actions[:, :STEPS].unique()) > 3
    logprobs = torch.stack(output.logits, dim=1)[:, :STEPS].log_softmax(dim=-1)
    expected = logprobs.gather(-1, output.sequences[:, 20 : 20 + STEPS, None]).squeeze(-1)

    blocks, found = output.sequences[:, : 19 + STEPS + 1], {}
    for bits_backend in ("nested", "fake"):
        model.generation_config.bits_backend = bits_backend
        schedule = ScheduleController(output.actions[:, :STEPS].T)
        found[bits_backend] = roll_out(model, prefill(model, blocks, 19), blocks, torch.ones(2, 4), schedule)
    torch.testing.assert_close(found["nested"].label_logprobs, expected, atol=2e-5, rtol=0)
    assert (found["fake"].label_logprobs - expected).abs().max() > 1e-2


def test_a_rollout_counts_the_bits_that_are_read():
    model, blocks = nested_model(), blocks_of(1)
    space = model.action_space
    levels = [3, 5, 7, 9, 16, 5]
    schedule = torch.tensor([[space.index(1.0, 1.0, level, 1.0)] for level in levels])
    seen = []

    class Watching(ScheduleController):
        def __call__(self, observation):
            seen.append(float(observation.ledger.episode_sums[0, 2]) * 16)
            return super().__call__(observation)

    roll_out(model, prefill(model, blocks, CONTEXT), blocks, torch.ones(1, 4), Watching(schedule))
    assert seen == pytest.approx([sum(READ[level] for level in levels[:step]) for step in range(STEPS)])


@pytest.mark.parametrize("bits", [5, 7])
def test_a_measured_cost_is_that_of_the_step_that_generate_makes(bits):
    model, blocks = nested_model(), blocks_of(2, steps=4)
    probes = Probes.at(model.action_space, {"bits": [bits], "neuron_keep": [0.4]})
    dense_id = model.action_space.dense_id
    found = measure(model, blocks, CONTEXT, probes, torch.full((2, 4), dense_id))
    damage = measure_damage(model, blocks, CONTEXT, probes)
    dense = model.score(blocks, context_length=CONTEXT, return_logits=True).logits.log_softmax(dim=-1)
    for number, action in enumerate(probes.actions.tolist()):
        for step in range(4):
            schedule = torch.full((4, 1), dense_id)
            schedule[step] = action
            options = dict(context_length=CONTEXT, return_logits=True, kv_refresh=False)
            sparse = model.score(blocks, **options, controller=ScheduleController(schedule)).logits
            wanted = (dense.exp() * (dense - sparse.log_softmax(dim=-1))).sum(dim=-1)[:, step]
            torch.testing.assert_close(found.divergence[:, step, number], wanted, atol=1e-5, rtol=1e-3)
            torch.testing.assert_close(damage[:, step, number], wanted, atol=1e-5, rtol=1e-3)


def test_levels_that_are_read_alike_are_probed_once_and_cost_the_same():
    space = StepSettings.of(nested_model(bits=[3, 4, 6, 7, 8, 9, 12, 16])).space
    probes = Probes.of(space, 4)
    bits = [
        space.table[action][2] for action, axis in zip(probes.actions.tolist(), probes.axes, strict=True) if axis == 2
    ]
    assert bits == [4, 6, 8]
    costs = torch.rand(40, len(probes.actions), generator=torch.Generator().manual_seed(0)) + 0.1
    tables = level_costs(costs, probes, space)
    assert all(bool(table.isfinite().all()) for table in tables)
    by_level = dict(zip(space.levels["bits"], tables[2].unbind(dim=-1), strict=True))
    for one, other in ((3, 4), (7, 8), (9, 16), (12, 16)):
        assert torch.equal(by_level[one], by_level[other])
    assert (by_level[16] == 0).all()
    allocation = Allocation(tables, space)
    chosen = allocation.choose(tables, torch.tensor([[0.5, 0.8, 0.5, 0.7]]).expand(40, 4))
    spent = torch.tensor(space.spent["bits"])[chosen[:, 2]] / 16
    assert abs(float(spent.mean()) - 0.5) < 0.05


def test_an_axis_whose_levels_are_all_read_in_full_costs_nothing():
    space = StepSettings.of(nested_model(bits=[9, 16])).space
    probes = Probes.of(space)
    assert 2 not in probes.axes
    tables = level_costs(torch.ones(3, len(probes.actions)), probes, space)
    assert tables[2].shape == (3, 2) and (tables[2] == 0).all()


def test_a_folder_of_measurements_belongs_to_one_way_to_compute(tmp_path):
    model, blocks = nested_model(), blocks_of(2, steps=2)
    probes = Probes.at(model.action_space, {"bits": [5]})
    Measurements(tmp_path / "nested", CONTEXT, probes).fill(model, blocks)
    model.generation_config.bits_backend = "fake"
    Measurements(tmp_path / "fake", CONTEXT, probes).fill(model, blocks)
    with pytest.raises(ValueError, match="measurements with another bits_backend"):
        Measurements(tmp_path / "nested", CONTEXT, probes).fill(model, blocks)
    model.generation_config.bits_backend = "nested"
    with pytest.raises(ValueError, match="measurements with another bits_backend"):
        Measurements(tmp_path / "fake", CONTEXT, probes).fill(model, blocks)
    Measurements(tmp_path / "nested", CONTEXT, probes).fill(model, blocks)


def test_planes_that_cannot_be_made_are_an_error_before_the_first_forward(monkeypatch):
    model, blocks = nested_model(), blocks_of()
    model.drop_copies()
    monkeypatch.setattr(type(model.base), "forward", lambda *_, **__: pytest.fail("a forward"))
    model.generation_config.max_plane_bytes = 10
    for run in (lambda: prefill(model, blocks, CONTEXT), lambda: measure(model, blocks, CONTEXT, *_one_probe(model))):
        with pytest.raises(ValueError, match="`max_plane_bytes` is 10: raise it"):
            run()
    model.generation_config.max_plane_bytes = None
    model.base.model.layers[0].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        prefill(model, blocks, CONTEXT)


def _one_probe(model):
    return Probes.at(model.action_space, {"bits": [5]}), torch.full((2, STEPS), model.action_space.dense_id)


def test_a_stored_option_that_is_not_allowed_is_refused():
    model = nested_model()
    model.generation_config.bits_backend = "nestd"
    with pytest.raises(ValueError, match="`bits_backend` must be one of fake, int8, nested, got 'nestd'"):
        prefill(model, blocks_of(), CONTEXT)


def test_int8_is_computed_as_generate_computes_it(monkeypatch):
    model, blocks = nested_model(), blocks_of(1)
    model.generation_config.bits_backend = "int8"
    action = model.action_space.index(1.0, 1.0, 7, 1.0)
    schedule = ScheduleController(torch.full((STEPS, 1), action))
    rollouts = roll_out(model, prefill(model, blocks, CONTEXT), blocks, torch.ones(1, 4), schedule)
    options = dict(context_length=CONTEXT, kv_refresh=False, controller=schedule)
    expected = model.score(blocks, **options, bits_backend="int8").logprobs
    torch.testing.assert_close(rollouts.label_logprobs, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, model.score(blocks, **options, bits_backend="fake").logprobs, atol=1e-5)


def test_planes_are_made_once_for_many_rollouts():
    model, blocks = nested_model(), blocks_of()
    schedule = ScheduleController(torch.full((STEPS, 1), model.action_space.index(1.0, 1.0, 5, 1.0)))
    made = []
    for _ in range(2):
        roll_out(model, prefill(model, blocks, CONTEXT), blocks, torch.ones(2, 4), schedule)
        made.append([id(part._planes) for part in Instrumentation.of(model.base).step_parts if part.nbytes])
    assert made[0] and made[0] == made[1]


def test_an_axis_that_the_base_cannot_carry_out_is_no_silent_dense_run():
    model = control(tiny_base("jetmoe", num_local_experts=2, num_experts_per_tok=1))
    with pytest.raises(UnsupportedAxisError, match="mlp_keep"):
        StepSettings.of(model).prepare(model, ["token_keep", "mlp_keep"])
    StepSettings.of(model).prepare(model, ["token_keep"])
