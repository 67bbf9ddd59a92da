# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The numbers of the published behaviour: logits to 1e-4, actions exactly, perplexities to 1e-3 relative."""

import pytest
import torch

from sol_hf import DriftController, EntropyController, FixedController, ScheduleController
from support.golden import CONTEXT, axis_schedule, stepwise_logits
from support.stale_prefill import stale_prefill


def test_action_table(golden_model, golden_vectors):
    values = golden_model().action_space.values
    torch.testing.assert_close(values[:, 0], golden_vectors["action_token_keep"])
    torch.testing.assert_close(values[:, 1], golden_vectors["action_mlp_keep"])
    assert torch.equal(values[:, 2].long(), golden_vectors["action_bits"])


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("criterion", ["quest", "relevancy", "recency"])
@pytest.mark.parametrize("axis", ["token_keep", "joint"])
def test_step_logits(golden_model, golden_vectors, criterion, axis, backend):
    model = golden_model(criterion=criterion)
    schedule = axis_schedule(golden_vectors, model.action_space, axis)
    name = f"joint.{criterion}.logits" if axis == "joint" else f"token_keep_only.{criterion}.logits"
    logits = stepwise_logits(model, golden_vectors, schedule, backend=backend)
    torch.testing.assert_close(logits, golden_vectors[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "fast", "auto"])
@pytest.mark.parametrize("axis", ["mlp_keep", "bits"])
def test_mlp_axes_alone(golden_model, golden_vectors, axis, backend):
    model = golden_model()
    schedule = axis_schedule(golden_vectors, model.action_space, axis)
    logits = stepwise_logits(model, golden_vectors, schedule, backend=backend)
    torch.testing.assert_close(logits, golden_vectors[f"{axis}_only.logits"], atol=1e-4, rtol=0)


def test_dense_logits(golden_model, golden_vectors):
    model = golden_model()
    output = model.score(golden_vectors["input_ids"], context_length=CONTEXT, return_logits=True)
    torch.testing.assert_close(output.logits.transpose(0, 1), golden_vectors["dense.logits"], atol=1e-4, rtol=0)


def test_dense_perplexity(golden_model, golden_vectors, golden_meta):
    model = golden_model(attn_implementation="stale_prefill")
    with stale_prefill([0.25, 0.25, 0.25]):
        output = model.score(golden_vectors["input_ids"], context_length=CONTEXT)
    perplexity = (-output.logprobs.mean()).exp().item()
    assert perplexity == pytest.approx(golden_meta["scalars"]["dense_full"]["ppl"], rel=1e-3)


@pytest.mark.parametrize("name", ["joint.quest", "joint.relevancy", "joint.recency"])
def test_hidden_states(golden_model, golden_vectors, name):
    model = golden_model(criterion=name.split(".")[1])
    seen = []

    class Recording(ScheduleController):
        def __call__(self, observation):
            seen.append(observation.hidden_state)
            return super().__call__(observation)

    controller = Recording(golden_vectors["action_schedule"])
    model.score(golden_vectors["input_ids"], context_length=CONTEXT, controller=controller, kv_refresh=False)
    torch.testing.assert_close(torch.stack(seen[1:]), golden_vectors[f"{name}.hidden"][:-1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["reference", "fast"])
@pytest.mark.parametrize("criterion", ["quest", "recency"])
def test_kv_refresh(golden_model, golden_vectors, criterion, backend):
    model = golden_model(criterion=criterion, episode_length=4)
    schedule = golden_vectors["action_schedule"]
    logits = stepwise_logits(model, golden_vectors, schedule, kv_refresh=True, backend=backend)
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


# Target -> `token_keep` per row of the last step of the run recorded before, for the closed loop and for `fixed`.
CLOSED_LOOP = {
    "0.3-0.6-8": [1.0, 1.0, 1.0],
    "0.6-0.8-10": [0.25, 0.25, 0.25],
    "0.9-0.5-6": [0.5, 0.5, 0.5],
    "0.25-1.0-16": [1.0, 1.0, 1.0],
}


def score_at_target(model, vectors, target, **options):
    token_keep, mlp_keep, bits = map(float, target.split("-"))
    return model.score(
        vectors["input_ids"],
        context_length=CONTEXT,
        token_keep=token_keep,
        mlp_keep=mlp_keep,
        bits=bits,
        budget_mode="soft",
        kv_refresh=False,
        **options,
    )


def check_means(output, expected):
    assert (-output.logprobs.mean()).exp().item() == pytest.approx(expected["ppl"], rel=1e-3)
    means = output.realised.mean(0)
    assert means[0].item() == pytest.approx(expected["avg_keep_effective"], abs=1e-5)
    assert means[1].item() == pytest.approx(expected["avg_prune_keep"], abs=1e-5)
    assert means[2].item() / 16 == pytest.approx(expected["avg_quant_ratio"], abs=1e-5)


@pytest.mark.parametrize("target", CLOSED_LOOP)
def test_closed_loop(golden_model, golden_vectors, golden_meta, target):
    model = golden_model(attn_implementation="stale_prefill")
    with stale_prefill(CLOSED_LOOP[target]):
        output = score_at_target(model, golden_vectors, target)
    values = model.action_space.values[output.actions].transpose(0, 1)
    for column, axis in enumerate(("token_keep", "mlp_keep", "bits")):
        torch.testing.assert_close(values[..., column], golden_vectors[f"closed_loop.{target}.{axis}"].float())
    check_means(output, golden_meta["scalars"][f"closed_loop.{target}"])


@pytest.mark.parametrize("target", CLOSED_LOOP)
def test_fixed(golden_model, golden_vectors, golden_meta, target):
    model = golden_model(attn_implementation="stale_prefill")
    with stale_prefill(golden_vectors[f"closed_loop.{target}.token_keep"][-1].tolist()):
        output = score_at_target(model, golden_vectors, target, controller=FixedController())
    check_means(output, golden_meta["scalars"][f"fixed.{target}"])


# As above: `entropy_margin` was run after `fixed`, `drift` after `entropy_margin`.
SIGNAL_CONTROLLERS = {
    "entropy_margin": (EntropyController, {"0.3-0.6-8": [0.25, 0.25, 0.5], "0.6-0.8-10": [0.5, 0.5, 0.5]}),
    "drift": (DriftController, {}),
}


@pytest.mark.parametrize("name", SIGNAL_CONTROLLERS)
@pytest.mark.parametrize("target", CLOSED_LOOP)
def test_controllers_that_follow_a_signal(golden_model, golden_vectors, golden_meta, target, name):
    model = golden_model(attn_implementation="stale_prefill")
    controller, before = SIGNAL_CONTROLLERS[name]
    token_keep = [1.0, 1.0, 1.0] if target == "0.9-0.5-6" else [0.25, 0.25, 0.25]
    with stale_prefill(before.get(target, token_keep)):
        output = score_at_target(model, golden_vectors, target, controller=controller())
    check_means(output, golden_meta["scalars"][f"{name}.{target}"])
