# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`budget_horizon="episode"`: budgets are kept at every step and at the end of every episode, for any controller.

The property runs over the package's own step loop on a base without weights, which only fills the cache. Every example
is a batch of rows with budgets of their own, so a few hundred examples are thousands of cases.
"""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from sol_hf import ActionSpace, Budget, SOLConfig, SOLForCausalLM
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.decoding.options import resolve_options
from support.bases import tiny_base
from support.extra_axis import registered
from support.hostile import HIDDEN, ROWS, WISHES, Adversary, budgets, policy_controller, simulate, spaces
from support.observations import observe


SCALE = torch.tensor([1.0, 1.0, 16.0])
SLACK = 1e-4
EPISODE = {"budget_horizon": "episode"}


def assert_kept(ratios, counted, episodes, budget, space, complete) -> None:
    """Check the budget, for actions `(steps, rows, axes)` in ratio units of all steps of a generation.

    `counted` `(steps, rows)` says which steps were controllable, `episodes` the episode of every step, and `complete`
    which episodes ran to their end.
    """
    rows = ratios.shape[1]
    targets, largest = budget.targets(rows, space=space).double(), space.ratios.amax(0).double()
    ratios, episodes = ratios.double(), torch.tensor(episodes)
    for column, axis in enumerate(space.axis_names):
        if axis not in budget.controlled:
            assert (ratios[..., column] == 1).all(), f"{axis} is not set, but did not stay dense"
    for row in range(rows):
        at_top = targets[row] >= largest
        chosen = ratios[:, row][counted[:, row]]
        assert (chosen[:, at_top] == largest[at_top]).all(), "an axis with its largest level as target left it"
        for episode in range(int(episodes[-1]) + 1):
            spent = ratios[:, row][counted[:, row] & (episodes == episode)]
            number = torch.arange(1, len(spent) + 1)[:, None]
            mean = spent.cumsum(0) / number
            # A target above the largest level leaves nothing to overshoot.
            bound = targets[row] + (largest - targets[row]).clamp(min=0) / number
            assert (mean <= bound + SLACK).all(), (row, episode, mean, targets[row])
            if episode in complete and len(spent):
                assert (mean[-1] <= targets[row] + SLACK).all(), (row, episode, mean[-1], targets[row])


@settings(max_examples=150, deadline=None)
@given(data=st.data(), space=spaces(), wish=st.sampled_from(WISHES), sample=st.booleans(), seed=st.integers(0, 10**6))
def test_every_budget_is_kept_at_every_step(data, space, wish, sample, seed):
    torch.manual_seed(seed)
    budget = data.draw(budgets(space))
    assume(budget.controlled)
    episode_length, steps = data.draw(st.integers(1, 18)), data.draw(st.integers(1, 40))
    prompt, sink, window = (data.draw(st.integers(0, most)) for most in (12, 5, 5))
    padding = data.draw(st.lists(st.integers(0, prompt), min_size=ROWS, max_size=ROWS))
    controller = policy_controller(space, episode_length) if wish == "policy" else Adversary(wish)
    with torch.no_grad():
        cache = simulate(
            space, budget, controller, episode_length, steps, padding, prompt, sink, window, sample, **EPISODE
        )
    actions = torch.stack([action for action, _ in cache.trace])
    counted = torch.stack([flag for _, flag in cache.trace])
    seen = torch.arange(prompt + 1, prompt + steps + 1)[:, None] - torch.tensor(padding)
    assert torch.equal(counted, seen > sink + window + 1)
    ratios = space.ratios[actions]
    assert (actions[~counted] == space.dense_id).all()
    episodes = [step // episode_length for step in range(steps)]
    complete = range(steps // episode_length)
    # Uncontrollable steps are dense by rule, which on a space without a dense level is not the largest level.
    ratios[~counted] = 1.0
    assert_kept(ratios, counted, episodes, budget, space, complete)


def choose_on_four_axes(space, budget, controller, episode_length, steps) -> torch.Tensor:
    """Actions `(steps, rows)` in hard mode where every step counts, without a base."""
    config = SOLConfig(**{axis: list(levels) for axis, levels in space.levels.items()}, episode_length=episode_length)
    controls = resolve_options({"budget": budget, **EPISODE}, None, GenerationConfig()).controls(controller, config)
    ledger, targets, actions = BudgetLedger(ROWS, space), budget.targets(ROWS, space=space), []
    for total in range(steps):
        step = total % episode_length
        if step == 0:
            ledger.start_episode()
            state: dict = {}
        previous = actions[-1] if step else torch.full((ROWS,), len(space))
        observation = observe(
            ROWS,
            space,
            targets,
            step=step,
            length=episode_length,
            total_step=total,
            ledger=ledger,
            state=state,
            previous_action=previous,
            hidden_state=torch.randn(ROWS, HIDDEN),
            token_embedding=torch.randn(ROWS, HIDDEN),
        )
        so_far = torch.stack(actions[total - step :], 1) if step else torch.empty(ROWS, 0, dtype=torch.long)
        actions.append(controls.processors(so_far, controller(observation), observation=observation).argmax(-1))
        ledger.record(space.ratios[actions[-1]], torch.ones(ROWS, dtype=torch.bool))
    return torch.stack(actions)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), published=spaces(), wish=st.sampled_from(WISHES), seed=st.integers(0, 10**6))
def test_every_budget_is_kept_on_an_added_axis(data, published, wish, seed):
    torch.manual_seed(seed)
    percents = data.draw(st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True))
    with registered(), torch.no_grad():
        space = ActionSpace.of({**published.levels, "mlp_noise": [p / 100 for p in percents]})
        budget = data.draw(budgets(space))
        assume(budget.controlled)
        episode_length, steps = data.draw(st.integers(1, 18)), data.draw(st.integers(1, 40))
        controller = policy_controller(space, episode_length) if wish == "policy" else Adversary(wish)
        actions = choose_on_four_axes(space, budget, controller, episode_length, steps)
        episodes = [step // episode_length for step in range(steps)]
        counted = torch.ones(steps, ROWS, dtype=torch.bool)
        complete = range(steps // episode_length)
        assert_kept(space.ratios[actions], counted, episodes, budget, space, complete)


def tiny_model(family: str = "llama", **settings_) -> SOLForCausalLM:
    levels = dict(token_keep=[0.2, 0.5, 1.0], mlp_keep=[0.4, 0.7, 1.0], bits=[4, 8, 16])
    config = SOLConfig(**{**levels, "policy_hidden_size": 32, "episode_length": 6, **settings_})
    model = SOLForCausalLM.from_base(tiny_base(family), config)
    for parameter in model.policy.parameters():
        parameter.data.normal_(std=0.5)
    return model


END_TO_END = [
    Budget(0.4, 0.6, 7),
    Budget(token_keep=0.2, mlp_keep=1.0),
    Budget(bits=[5, 9.5]),
    Budget([0.3, 1.0], [0.55, 0.4], [16, 4]),
]


def assert_actions_kept(model, actions, seen, budget) -> None:
    """`actions` `(rows, steps)`, of which row `r` sees `seen[r]` keys at its first step."""
    length = model.config.episode_length
    actions = actions.T
    counted = (torch.arange(len(actions))[:, None] + torch.tensor(seen)) > 4 + 2 + 1
    assert (actions[~counted] == model.action_space.dense_id).all()
    ratios, episodes = model.action_space.ratios[actions], [step // length for step in range(len(actions))]
    assert_kept(ratios, counted, episodes, budget, model.action_space, range(len(actions) // length))


@pytest.mark.parametrize("wish", ["dearest", "random", "policy"])
@pytest.mark.parametrize("budget", END_TO_END, ids=str)
def test_score_keeps_the_budget(budget, wish):
    model = tiny_model()
    controller = None if wish == "policy" else Adversary(wish)
    output = model.score(
        torch.randint(2, 99, (2, 25)), context_length=4, budget=budget, controller=controller, **EPISODE
    )
    assert output.actions.shape == (2, 20)
    assert_actions_kept(model, output.actions, [5, 5], budget)
    last = torch.cat([model.action_space.ratios[output.actions[row, 3:]].mean(0)[None] for row in range(2)])
    torch.testing.assert_close(output.realised, last * SCALE, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(
    "mode",
    [dict(), dict(do_sample=True), dict(num_beams=2), dict(do_sample_actions=True, action_temperature=9.0)],
    ids=str,
)
@pytest.mark.parametrize("budget", END_TO_END, ids=str)
def test_generate_keeps_the_budget(budget, mode):
    model = tiny_model()
    prompt, mask = torch.randint(2, 99, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    mask[1, :5] = 0
    output = model.generate(
        prompt,
        attention_mask=mask,
        budget=budget,
        controller=Adversary("dearest") if "num_beams" in mode else None,
        max_new_tokens=18,
        return_dict_in_generate=True,
        **mode,
        **EPISODE,
    )
    assert output.actions.shape == (2, 18)
    assert_actions_kept(model, output.actions, [9, 4], budget)


def test_a_window_over_all_layers_and_other_families_keep_the_budget():
    for family in ("mistral", "qwen3", "gemma3_text"):
        model = tiny_model(family)
        ids = torch.randint(2, 99, (2, 40))
        output = model.score(ids, context_length=20, budget=END_TO_END[0], controller=Adversary("dearest"), **EPISODE)
        assert_actions_kept(model, output.actions, [21, 21], END_TO_END[0])


def test_soft_mode_trusts_the_controller():
    model = tiny_model()
    ids = torch.randint(2, 99, (1, 30))
    output = model.score(
        ids, context_length=10, budget=Budget(0.3, 0.5, 5), budget_mode="soft", controller=Adversary("dearest")
    )
    assert output.realised.tolist() == [[1, 1, 16]]


def test_an_axis_at_its_largest_level_stays_there_in_a_long_episode():
    model = tiny_model(token_keep=[0.3, 0.9], episode_length=100)
    ids = torch.randint(2, 99, (1, 130))
    output = model.score(ids, context_length=20, token_keep=0.9, mlp_keep=0.7, bits=16)
    levels = model.action_space.values[output.actions[0]][:, 0]
    torch.testing.assert_close(levels, torch.full_like(levels, 0.9))


@pytest.mark.parametrize("first", [1, 4, 6, 11])
def test_an_episode_that_two_calls_share_keeps_the_budget(first):
    # The second call goes on where the first one stopped, within its episode.
    model, budget = tiny_model(episode_length=12), Budget(0.4, 0.6, 8)
    cache, tokens, actions = model.new_cache(), torch.randint(2, 99, (1, 10)), []
    for steps in (first, 12 - first):
        output = model.generate(
            tokens,
            past_key_values=cache,
            budget=budget,
            controller=Adversary("dearest"),
            max_new_tokens=steps,
            **EPISODE,
            return_dict_in_generate=True,
        )
        tokens = output.sequences
        actions.append(output.actions)
    assert cache.episode.length == 12
    assert_actions_kept(model, torch.cat(actions, dim=1), [10], budget)
