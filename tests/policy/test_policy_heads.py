# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Variants of the policy: factored heads, and a prior with which an untrained policy is the fixed schedule."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from sol_hf import (
    ActionSpace,
    FixedController,
    Observation,
    PolicyController,
    SOLConfig,
    SOLForCausalLM,
    SOLPolicyModel,
)
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.controllers.base import Controller
from sol_hf.policy.budget_prior import BudgetPrior
from sol_hf.policy.factored_head import joint_logits
from support.bases import tiny_base
from support.extra_axis import FOUR_LEVELS


STEPS = 16
SMALL = dict(token_keep=[0.2, 0.6, 1.0], mlp_keep=[0.6, 0.8, 1.0], bits=[8, 16])
FULL: dict = {}
LOW = dict(token_keep=[0.1, 0.3, 0.5], mlp_keep=[0.8, 0.4, 0.6], bits=[4, 6, 8])
SIZES = dict(
    policy_hidden_size=16, policy_num_heads=2, action_embedding_size=4, base_hidden_size=12, base_embedding_size=10
)
HEADS = ["joint", "factored"]
VARIANTS = [(head, prior) for head in HEADS for prior in (False, True)]
variants = pytest.mark.parametrize(("head", "prior"), VARIANTS)


def make_policy(head: str = "joint", prior: bool = True, std: float = 0.0, **levels) -> SOLPolicyModel:
    """A fresh policy, or with `std` one whose parameters have all moved."""
    policy = SOLPolicyModel(SOLConfig(action_head=head, budget_prior=prior, **{**SMALL, **SIZES, **levels})).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=std)
    return policy


def make_inputs(rows: int = 3, steps: int = 5, n_actions: int = 18, axes: int = 3) -> dict[str, torch.Tensor]:
    scalars = torch.rand(rows, steps, 2 + 2 * axes)
    scalars[..., 0] = torch.arange(1, steps + 1) / STEPS
    scalars[..., 2 + axes :] -= 0.5
    return dict(
        hidden_states=torch.randn(rows, steps, 12),
        token_embeddings=torch.randn(rows, steps, 10),
        scalars=scalars,
        previous_actions=torch.randint(n_actions + 1, (rows, steps)),
    )


@torch.no_grad()
def play(controller: Controller, targets: torch.Tensor, space: ActionSpace) -> torch.Tensor:
    """Actions `(rows, steps)` of an episode in which every row has a target of its own and all steps count."""
    rows = len(targets)
    ledger, state, actions = BudgetLedger(rows, space), {}, [torch.full((rows,), len(space))]
    counted = torch.ones(rows, dtype=torch.bool)
    for step in range(STEPS):
        observation = Observation(
            hidden_state=torch.randn(rows, 12),
            token_embedding=torch.randn(rows, 10),
            previous_action=actions[-1],
            controllable=counted,
            remaining=torch.full((rows,), float(STEPS - step)),
            step=step,
            total_step=step,
            episode_length=STEPS,
            targets=targets,
            ledger=ledger,
            action_space=space,
            state=state,
            page_fill=torch.rand(rows),
        )
        actions.append(controller(observation).argmax(-1))
        ledger.record(space.ratios[actions[-1]], counted)
    return torch.stack(actions[1:], dim=1)


def random_targets(space: ActionSpace, rows: int = 300) -> torch.Tensor:
    low, high = space.min_ratio(), space.max_ratio()
    return low + torch.rand(rows, len(space.axes)) * (high - low)


def round_targets(space: ActionSpace, rows: int = 300) -> torch.Tensor:
    """Targets of whole percents and quarter bits, many of which lie halfway between levels, or on one."""
    percents, low, high = torch.randint(1, 101, (rows, 3)) / 100, space.min_ratio(), space.max_ratio()
    percents[:, 2] = torch.randint(8, 65, (rows,)) / 64
    return torch.maximum(torch.minimum(percents, high), low)


class TestJointLogits:
    def test_it_is_the_sum_of_the_levels_of_an_action(self):
        space, levels = ActionSpace(**SMALL), torch.randn(2, 4, 8)
        logits = joint_logits(levels, (3, 3, 2))
        assert logits.shape == (2, 4, 18)
        for index, action in enumerate(space.table):
            places = [known.index(value) for known, value in zip(space.levels.values(), action, strict=True)]
            expected = levels[..., places[0]] + levels[..., 3 + places[1]] + levels[..., 6 + places[2]]
            torch.testing.assert_close(logits[..., index], expected)

    def test_its_softmax_is_the_product_over_the_axes(self):
        levels = torch.randn(5, 8)
        axes = [part.softmax(-1) for part in levels.split((3, 3, 2), dim=-1)]
        product = torch.einsum("ra,rb,rc->rabc", *axes).flatten(1)
        torch.testing.assert_close(joint_logits(levels, (3, 3, 2)).softmax(-1), product)


class TestUntrainedPrior:
    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("levels", [FULL, SMALL, LOW], ids=["full", "small", "low"])
    @pytest.mark.parametrize("draw", [random_targets, round_targets])
    def test_it_plays_the_fixed_schedule_of_a_row_alone(self, head, levels, draw):
        config = SOLConfig(action_head=head, budget_prior=True, **levels, **SIZES)
        space, policy = config.action_space, SOLPolicyModel(config).eval()
        targets = draw(space)
        actions = play(PolicyController(policy), targets, space)
        assert torch.equal(actions, play(FixedController(), targets, space))
        largest_step = torch.tensor([max(b - a for a, b in pairwise(c.unique().tolist())) for c in space.ratios.T])
        off = (space.ratios[actions].mean(1) - targets).abs()
        assert (off <= largest_step / (2 * STEPS) + 2e-6).all()

    def test_axes_with_one_level_and_targets_out_of_reach_do_no_harm(self):
        config = SOLConfig(token_keep=[0.5], mlp_keep=[1.0, 0.6], bits=[16], budget_prior=True, **SIZES)
        targets = torch.tensor([[1.0, 0.7, 1.0], [0.6, 0.9, 1.0]])
        space = config.action_space
        actions = play(PolicyController(SOLPolicyModel(config).eval()), targets, space)
        assert torch.equal(actions, play(FixedController(), targets, space))

    @pytest.mark.parametrize("head", HEADS)
    def test_it_does_so_in_bfloat16(self, head):
        policy = make_policy(head).bfloat16()
        space = policy.config.action_space
        targets = round_targets(space)
        actions = play(PolicyController(policy), targets, space)
        assert torch.equal(actions, play(FixedController(), targets, space))

    @pytest.mark.parametrize("head", HEADS)
    @pytest.mark.parametrize("budget", [(0.47, 0.83, 9.3), (0.4, 0.7, 12), (1.0, 0.9, 16), (0.2, 0.65, 8.5)])
    def test_it_does_so_on_a_real_base(self, head, budget):
        config = SOLConfig(**SMALL, action_head=head, budget_prior=True, policy_hidden_size=16)
        model = SOLForCausalLM.from_base(tiny_base("llama"), config)
        ids = torch.randint(99, (1, 12 + STEPS + 1))
        options = dict(zip(SMALL, budget, strict=True), context_length=12, budget_mode="soft")
        own = model.score(ids, **options)
        fixed = model.score(ids, controller=FixedController(carry=tuple(SMALL)), **options)
        assert own.actions.shape == (1, STEPS)
        assert torch.equal(own.actions, fixed.actions)
        assert len(own.actions.unique()) > 1


class TestCentre:
    scalars = torch.tensor([5 / 16, 1.0, 0.5, 0.4, 0.75, 0.1, 0.05, -0.02])

    def test_a_debt_is_repaid_at_once_or_over_what_is_left(self):
        prior = make_policy(mlp_keep=[0.4, 0.8]).budget_prior
        owed = 4 * torch.tensor([0.1, 0.45 * 0.8 - 0.4, -0.02])
        targets = torch.tensor([0.5, 0.4, 0.75])
        torch.testing.assert_close(prior.centre(self.scalars), targets - owed, atol=2e-5, rtol=0)
        torch.nn.init.constant_(prior.repayment_spread, 1.0)
        torch.testing.assert_close(prior.centre(self.scalars), targets - owed / 13, atol=2e-5, rtol=0)
        torch.nn.init.constant_(prior.repayment_spread, -1.0)
        torch.testing.assert_close(prior.centre(self.scalars), targets - owed, atol=2e-5, rtol=0)

    def test_nothing_is_owed_at_the_first_step(self):
        prior = make_policy(mlp_keep=[0.4, 0.8]).budget_prior
        scalars = torch.cat([torch.tensor([1 / 16]), self.scalars[1:5], torch.zeros(3)])
        torch.testing.assert_close(prior.centre(scalars), scalars[2:5], atol=2e-5, rtol=0)

    def test_a_neighbouring_level_is_e_times_less_likely(self):
        prior = BudgetPrior(ActionSpace([0.1, 0.2, 0.3], [0.6], [6, 5, 8, 7]), STEPS)
        scalars = torch.tensor([1 / 16, 1.0, 0.2, 0.6, 6 / 16, 0.0, 0.0, 0.0])
        expected = torch.tensor([-1.0, 0, -1, 0, 0, -1, -4, -1])
        torch.testing.assert_close(prior(scalars), expected, atol=2e-3, rtol=0)

    def test_what_generating_made_serves_training(self):
        policy, inputs = make_policy(), make_inputs()
        with torch.inference_mode():
            policy(**inputs)
        policy(**inputs).logits.logsumexp(-1).sum().backward()
        assert policy.action_head.weight.grad.isfinite().all()


@variants
def test_every_parameter_but_the_value_head_gets_a_gradient(head, prior):
    policy = make_policy(head, prior)
    policy(**make_inputs()).logits.log_softmax(-1)[..., 3].sum().backward()
    grads = {name: parameter.grad for name, parameter in policy.named_parameters()}
    assert {name for name, grad in grads.items() if grad is None} == {"value_head.weight", "value_head.bias"}
    heads = [name for name in grads if name.startswith(("action_head.", "budget_head.2.", "budget_prior."))]
    assert len(heads) == (6 if prior else 4)
    assert all(grads[name].abs().sum() > 0 for name in heads)


@torch.no_grad()
@variants
def test_steps_of_an_episode_are_the_sequence_pass(head, prior):
    policy, inputs, cache = make_policy(head, prior, std=0.3), make_inputs(), None
    whole = policy(**inputs).logits
    assert whole.shape == (3, 5, 18)
    for step in range(5):
        here = {name: tensor[:, step : step + 1] for name, tensor in inputs.items()}
        output = policy(**here, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("std", [0.0, 0.3])
@variants
def test_save_and_load(tmp_path, head, prior, std):
    policy, inputs = make_policy(head, prior, std), make_inputs()
    policy.save_pretrained(tmp_path)
    loaded, info = SOLPolicyModel.from_pretrained(tmp_path, output_loading_info=True)
    assert (loaded.config.action_head, loaded.config.budget_prior) == (head, prior)
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(**inputs).logits, policy(**inputs).logits)


@torch.no_grad()
@pytest.mark.parametrize("head", HEADS)
def test_heads_that_a_file_lacks_start_at_the_prior(tmp_path, head):
    policy, inputs = make_policy(head, std=0.3), make_inputs()
    policy.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    kept = {name: x for name, x in load_file(file).items() if not name.startswith(("action_h", "budget_"))}
    save_file(kept, file, metadata={"format": "pt"})
    loaded = SOLPolicyModel.from_pretrained(tmp_path)
    expected = joint_logits(make_policy(head).budget_prior(inputs["scalars"]), (3, 3, 2))
    torch.testing.assert_close(loaded(**inputs).logits, expected)


def test_the_default_is_the_published_network(tmp_path):
    config = SOLConfig(**SMALL, **SIZES)
    names = set(SOLPolicyModel(config).state_dict())
    assert names == set(make_policy(prior=False).state_dict())
    assert not any("prior" in name for name in names)
    config.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    del written["action_head"], written["budget_prior"]
    (tmp_path / "config.json").write_text(json.dumps(written))
    old = SOLConfig.from_pretrained(tmp_path)
    assert (old.action_head, old.budget_prior) == ("joint", False)


def test_an_unknown_head_is_refused():
    with pytest.raises(ValueError, match="`action_head` must be one of joint, factored, got 'split'"):
        SOLConfig(action_head="split")


@pytest.mark.parametrize(("head", "prior"), VARIANTS[1:])
def test_published_weights_need_the_published_network(head, prior):
    with pytest.raises(ValueError, match='`action_head="joint"` and without `budget_prior`'):
        make_policy(head, prior).load_published({})


class TestFit:
    @variants
    def test_a_saved_model_loads(self, tmp_path, head, prior):
        config = SOLConfig(**SMALL, policy_hidden_size=16, action_head=head, budget_prior=prior)
        SOLForCausalLM.from_base(tiny_base("llama"), config).save_pretrained(tmp_path)
        loaded = SOLForCausalLM.from_pretrained(tmp_path, base=tiny_base("llama"))
        assert (loaded.config.action_head, loaded.config.budget_prior) == (head, prior)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"action_head": "joint"}, "`action_head='factored'`, but its config says 'joint'"),
            ({"budget_prior": False}, "`budget_prior=True`, but its config says False"),
            ({"bits": [8, 12, 16]}, "has 18 actions, but its config describes 27"),
            ({"mlp_keep": [0.6, 1.0], "bits": [8, 12, 16]}, "other levels"),
            ({"bits": [4, 16]}, "other levels"),
        ],
    )
    def test_a_policy_of_another_config_is_refused(self, changes, message):
        base = tiny_base("llama")
        sizes = dict(policy_hidden_size=16, base_hidden_size=32, base_embedding_size=32)
        config = SOLConfig(**SMALL, **sizes, action_head="factored", budget_prior=True)
        with pytest.raises(ValueError, match=message):
            SOLForCausalLM(SOLConfig(**{**config.to_diff_dict(), **changes}), base, SOLPolicyModel(config))


@pytest.mark.usefixtures("mlp_noise")
class TestFourAxes:
    @pytest.mark.parametrize("counts", [(3,), (3, 2), (2, 3, 2, 4)])
    def test_joint_logits_of_any_number_of_axes(self, counts):
        levels = torch.randn(5, sum(counts))
        joint = joint_logits(levels, counts).view(5, *counts)
        for place, own in enumerate(levels.split(counts, dim=-1)):
            others = tuple(range(1, place + 1)) + tuple(range(place + 2, len(counts) + 1))
            marginal = joint.softmax(-1) if not others else joint.flatten(1).softmax(-1).view(joint.shape).sum(others)
            torch.testing.assert_close(marginal, own.softmax(-1))

    @torch.no_grad()
    @variants
    def test_the_network_has_its_scalars_targets_and_levels(self, tmp_path, head, prior):
        policy, inputs = make_policy(head, prior, std=0.3, **FOUR_LEVELS), make_inputs(n_actions=36, axes=4)
        assert policy.scalar_features[0].in_features == 10
        assert policy.budget_head[0].in_features == 4
        assert policy.action_head.out_features == (10 if head == "factored" else 36)
        logits = policy(**inputs).logits
        assert logits.shape == (3, 5, 36)
        for column in range(2, 10 if prior else 6):  # every target, and with a prior every drift, has an effect
            scalars = inputs["scalars"].clone()
            scalars[..., column] += 0.1
            assert not torch.allclose(policy(**{**inputs, "scalars": scalars}).logits, logits)
        policy.save_pretrained(tmp_path)
        assert torch.equal(SOLPolicyModel.from_pretrained(tmp_path)(**inputs).logits, logits)

    @torch.no_grad()
    @variants
    def test_the_fill_of_the_page_stands_behind_the_scalars(self, head, prior):
        policy, inputs = make_policy(head, prior, std=0.3, **FOUR_LEVELS, observe_page_fill=True), make_inputs(axes=4)
        fills = [torch.full((3, 5, 1), fill) for fill in (1 / 8, 1.0)]
        one, other = (
            policy(**{**inputs, "scalars": torch.cat([inputs["scalars"], fill], dim=-1)}).logits for fill in fills
        )
        assert not torch.allclose(one, other)

    @pytest.mark.parametrize("head", HEADS)
    def test_an_untrained_prior_plays_the_fixed_schedule(self, head):
        policy = make_policy(head, **{**FOUR_LEVELS, "bits": [8, 16]})  # evenly spaced levels
        space = policy.config.action_space
        targets = random_targets(space)
        actions = play(PolicyController(policy), targets, space)
        assert torch.equal(actions, play(FixedController(), targets, space))
        off = (space.ratios[actions].mean(1) - targets).abs()
        assert (off <= torch.tensor([0.4, 0.5, 0.5, 0.5]) / (2 * STEPS) + 2e-6).all()

    def test_a_policy_of_other_axes_is_refused(self):
        levels = {**FOUR_LEVELS, "bits": [16]}
        config = SOLConfig(**SMALL, policy_hidden_size=16, base_hidden_size=32, base_embedding_size=32)
        other = SOLConfig(**{**config.to_diff_dict(), **levels, "mlp_keep": [0.6, 0.8, 1.0]})
        assert len(other.action_space) == len(config.action_space)
        with pytest.raises(ValueError, match="has the axes token_keep, mlp_keep, bits, mlp_noise, but its config"):
            SOLForCausalLM(config, tiny_base("llama"), SOLPolicyModel(other))
