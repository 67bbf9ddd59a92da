# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy takes the same actions by compiled code as by its modules and the processors of the call."""

import copy
import pickle
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sol_hf import ActionSpace, Budget, Controller, PolicyController, SOLConfig, SOLPolicyModel
from sol_hf.decoding import step
from sol_hf.policy.compiled import PolicyProgram
from sol_hf.policy.episode_cache import EpisodeCache
from support.bases import tiny_base
from support.cases import HALF, control, left_padded, prompts
from support.hostile import HIDDEN, ROWS, budgets, simulate, spaces


class ByModules(Controller):
    """The same policy, by its modules."""

    follows_bank = True

    def __init__(self, policy: SOLPolicyModel):
        self.policy = policy

    def __call__(self, observation):
        inputs = observation.hidden_state, observation.token_embedding, observation.scalars
        inputs = [x[:, None] for x in (*inputs, observation.previous_action)]
        return self.policy(*inputs, past_key_values=observation.state["cache"]).logits[:, -1].float()


@contextmanager
def both_ways():
    """Within the block every step is chosen both ways; yields a list with an item for each by compiled code."""
    own, run, seen = step.choose, PolicyProgram.choose, []

    def choose(observation, session):
        cache = copy.deepcopy(observation.state.get("cache")) or EpisodeCache()
        twin = replace(observation, state={"cache": cache})
        actions, controls = own(observation, session), session.controls
        session.controls = replace(controls, controller=ByModules(controls.controller.policy))
        expected, session.controls = own(twin, session), controls
        assert torch.equal(actions, expected)
        return actions

    def noted(*arguments):
        seen.append(1)
        return run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "choose", choose)
        patch.setattr(PolicyProgram, "choose", noted)
        yield seen


def policy_of(space: ActionSpace, episode_length: int, seed: int, **options) -> SOLPolicyModel:
    """A random policy of which compiled code can run the steps."""
    torch.manual_seed(seed)
    sizes = dict(base_hidden_size=HIDDEN, base_embedding_size=HIDDEN, action_embedding_size=8, policy_num_heads=2)
    levels = {axis: list(values) for axis, values in space.levels.items()}
    policy = SOLPolicyModel(SOLConfig(**levels, **sizes, episode_length=episode_length, **options)).eval()
    for parameter in policy.parameters():
        parameter.data.normal_(std=0.5)
    return policy


NETWORKS = st.fixed_dictionaries(
    dict(
        action_head=st.sampled_from(["joint", "factored"]),
        budget_prior=st.booleans(),
        observe_page_fill=st.booleans(),
        policy_num_layers=st.integers(1, 3),
        policy_hidden_size=st.sampled_from([16, 32, 48]),
    )
)
CALLS = st.sampled_from(
    [dict(budget_mode="soft"), dict(budget_horizon="episode"), dict(budget_horizon="generation"), dict(exact=True)]
)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), space=spaces(), network=NETWORKS, call=CALLS, seed=st.integers(0, 999))
def test_the_same_actions(data, space, network, call, seed):
    episode_length, steps = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 12))
    prompt, sink, window = (data.draw(st.integers(0, most)) for most in (12, 5, 5))
    padding = data.draw(st.lists(st.integers(0, prompt), min_size=ROWS, max_size=ROWS))
    budget = data.draw(budgets(space))
    if not budget.controlled:
        budget = Budget(bits=float(max(space.levels["bits"])))
    controller = PolicyController(policy_of(space, episode_length, seed, **network))
    with torch.no_grad(), both_ways() as compiled:
        simulate(space, budget, controller, episode_length, steps, padding, prompt, sink, window, False, **call)
    assert len(compiled) == steps


def test_short_texts_and_rows_of_other_budgets():
    model = control(tiny_base("llama", torch.float32), short_text_tokens=24, budget_prior=True)
    model.policy.float()
    rows = [prompts(1, length, seed=length)[0] for length in (20, 31, 5)]
    budget = dict(token_keep=[0.3, 0.7, 1.0], bits=[8, 16, 16], mlp_keep=[0.5, 0.7, 1.0])
    for call in (dict(), dict(budget_horizon="episode")):
        with both_ways() as compiled:
            model.generate(max_new_tokens=13, do_sample=False, pad_token_id=0, **budget, **call, **left_padded(rows))
        assert len(compiled) == 13


class TestProcessorsChoose:
    """Where more is done than to take the best action within the limits, compiled code scores actions at most."""

    @pytest.fixture
    def chosen(self, monkeypatch):
        seen, own = [], PolicyProgram.choose
        monkeypatch.setattr(PolicyProgram, "choose", lambda *given: seen.append(own(*given)) or seen[-1])
        return seen

    @pytest.fixture
    def model(self):
        model = control(tiny_base("llama", torch.float32))
        model.policy.float()
        return model

    def tokens(self, model, **options):
        return model.generate(prompts(1, 20), max_new_tokens=4, do_sample=False, **HALF, **options)

    def test_with_a_processor_of_the_user(self, model, chosen):
        before = model.action_space.dense_id

        def forbid(action_ids, scores):
            scores = scores.clone()
            scores[:, :before] = float("-inf")
            return scores

        self.tokens(model, action_processors=[forbid], budget_mode="soft")
        assert not chosen

    def test_with_drawn_actions(self, model, chosen):
        self.tokens(model, do_sample_actions=True)
        assert not chosen

    def test_with_a_controller_around_the_policy(self, model, chosen):
        class Least(PolicyController):
            def __call__(self, observation):
                return -super().__call__(observation)

        self.tokens(model, controller=Least(model.policy))
        assert not chosen

    def test_by_plain_torch(self, model, chosen):
        self.tokens(model, backend="reference")
        assert not chosen

    def test_with_scores_that_are_no_numbers(self, model):
        model.policy.action_head.bias.data.fill_(float("nan"))
        with pytest.raises(ValueError, match="not a number"):
            self.tokens(model)

    def test_with_infinite_scores(self, model, chosen):
        model.policy.action_head.bias.data[3] = float("-inf")
        found, expected = (self.tokens(model, backend=backend) for backend in ("auto", "reference"))
        assert torch.equal(found, expected) and all(scores is not None for _, scores in chosen)


class TestTheCacheOfAnEpisode:
    def steps(self, policy, cache, begin: int, end: int) -> torch.Tensor:
        """Logits of the last of some steps."""
        torch.manual_seed(begin)
        for _ in range(begin, end):
            inputs = torch.randn(2, HIDDEN), torch.randn(2, HIDDEN), torch.rand(2, 9), torch.zeros(2, dtype=torch.long)
            with torch.no_grad():
                logits = policy.step(*inputs, cache)
        return logits

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
    def test_a_copy_goes_its_own_way(self, copied):
        policy, caches = policy_of(ActionSpace([0.5, 1.0], [1.0], [8, 16]), 9, 0), []
        for _ in range(2):
            caches.append(EpisodeCache())
            self.steps(policy, caches[-1], 0, 3)
        twin = copied(caches[0])
        twin.layers = [copied(layer) for layer in twin.layers]
        self.steps(policy, twin, 5, 8)
        found, expected = (self.steps(policy, cache, 3, 5) for cache in caches)
        assert torch.equal(found, expected)

    def test_steps_after_a_crop(self):
        policy, caches = policy_of(ActionSpace([0.5, 1.0], [1.0], [8, 16]), 9, 0), []
        for dropped in (0, 2):
            caches.append(EpisodeCache())
            self.steps(policy, caches[-1], 0, 3)
            if dropped:
                self.steps(policy, caches[-1], 6, 6 + dropped)
                caches[-1].crop(-dropped)
        found, expected = (self.steps(policy, cache, 3, 5) for cache in caches)
        assert torch.equal(found, expected)
