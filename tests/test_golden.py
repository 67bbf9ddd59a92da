# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The numbers of the published behaviour: logits to 1e-4, actions exactly, perplexities to 1e-3 relative."""

import pytest
import torch

from sol_hf import ScheduleController


CONTEXT = 43


def axis_schedule(vectors, space, axis):
    """The golden schedule with every axis but one at its dense level."""
    schedule = vectors["action_schedule"]
    if axis == "joint":
        return schedule
    columns = {name: torch.full(schedule.shape, float(max(space.levels[name]))) for name in space.levels}
    columns[axis] = vectors[f"action_{axis}"][schedule].double()
    ids = torch.empty_like(schedule)
    for place, _ in enumerate(schedule.flatten()):
        row = [
            min(space.levels[name], key=lambda v: abs(v - columns[name].flatten()[place].item())) for name in columns
        ]
        ids.view(-1)[place] = space.index(*row)
    return ids


def stepwise_logits(model, vectors, schedule, kv_refresh=False):
    output = model.score(
        vectors["input_ids"],
        context_length=CONTEXT,
        controller=ScheduleController(schedule),
        kv_refresh=kv_refresh,
        return_logits=True,
    )
    return output.logits.transpose(0, 1)


def test_action_table(golden_model, golden_vectors):
    values = golden_model().action_space.values
    torch.testing.assert_close(values[:, 0], golden_vectors["action_token_keep"])
    torch.testing.assert_close(values[:, 1], golden_vectors["action_mlp_keep"])
    assert torch.equal(values[:, 2].long(), golden_vectors["action_bits"])


@pytest.mark.parametrize("criterion", ["quest", "relevancy", "recency"])
@pytest.mark.parametrize("axis", ["token_keep", "joint"])
def test_step_logits(golden_model, golden_vectors, criterion, axis):
    model = golden_model(criterion=criterion)
    schedule = axis_schedule(golden_vectors, model.action_space, axis)
    name = f"joint.{criterion}.logits" if axis == "joint" else f"token_keep_only.{criterion}.logits"
    logits = stepwise_logits(model, golden_vectors, schedule)
    torch.testing.assert_close(logits, golden_vectors[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("axis", ["mlp_keep", "bits"])
def test_mlp_axes_alone(golden_model, golden_vectors, axis):
    model = golden_model()
    schedule = axis_schedule(golden_vectors, model.action_space, axis)
    logits = stepwise_logits(model, golden_vectors, schedule)
    torch.testing.assert_close(logits, golden_vectors[f"{axis}_only.logits"], atol=1e-4, rtol=0)


def test_dense(golden_model, golden_vectors, golden_meta):
    model = golden_model()
    output = model.score(golden_vectors["input_ids"], context_length=CONTEXT, return_logits=True)
    torch.testing.assert_close(output.logits.transpose(0, 1), golden_vectors["dense.logits"], atol=1e-4, rtol=0)
    perplexity = (-output.logprobs.mean()).exp().item()
    assert perplexity == pytest.approx(golden_meta["scalars"]["dense_full"]["ppl"], rel=1e-3)


@pytest.mark.parametrize("criterion", ["quest", "recency"])
def test_kv_refresh(golden_model, golden_vectors, criterion):
    model = golden_model(criterion=criterion, episode_length=4)
    logits = stepwise_logits(model, golden_vectors, golden_vectors["action_schedule"], kv_refresh=True)
    torch.testing.assert_close(logits, golden_vectors[f"joint_refresh4.{criterion}.logits"], atol=1e-4, rtol=0)


def test_policy_alone(golden_model, golden_vectors):
    policy = golden_model().policy
    with torch.no_grad():
        logits = policy(
            hidden_states=golden_vectors["policy.hidden"].transpose(0, 1),
            token_embeddings=golden_vectors["policy.embed"].transpose(0, 1),
            scalars=golden_vectors["policy.scalars"].transpose(0, 1),
            previous_actions=golden_vectors["policy.prev_actions"].transpose(0, 1),
        ).logits
    torch.testing.assert_close(
        logits.transpose(0, 1) / 1.3, golden_vectors["policy.logits_temp1.3"], atol=1e-4, rtol=0
    )


TARGETS = ["0.3-0.6-8", "0.6-0.8-10", "0.9-0.5-6", "0.25-1.0-16"]


@pytest.mark.parametrize("target", TARGETS)
def test_closed_loop(golden_model, golden_vectors, golden_meta, target):
    token_keep, mlp_keep, bits = map(float, target.split("-"))
    model = golden_model()
    output = model.score(
        golden_vectors["input_ids"],
        context_length=CONTEXT,
        token_keep=token_keep,
        mlp_keep=mlp_keep,
        bits=bits,
        budget_mode="soft",
        kv_refresh=False,
    )
    values = model.action_space.values[output.actions].transpose(0, 1)
    for column, axis in enumerate(("token_keep", "mlp_keep", "bits")):
        torch.testing.assert_close(values[..., column], golden_vectors[f"closed_loop.{target}.{axis}"].float())
    expected = golden_meta["scalars"][f"closed_loop.{target}"]
    assert (-output.logprobs.mean()).exp().item() == pytest.approx(expected["ppl"], rel=1e-3)
    means = output.realised.mean(0)
    assert means[0].item() == pytest.approx(expected["avg_keep_effective"], abs=1e-5)
    assert means[1].item() == pytest.approx(expected["avg_prune_keep"], abs=1e-5)
    assert means[2].item() / 16 == pytest.approx(expected["avg_quant_ratio"], abs=1e-5)
