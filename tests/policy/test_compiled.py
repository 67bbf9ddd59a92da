# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A policy that runs as one program scores actions as its modules do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from sol_hf import SOLConfig, SOLPolicyModel
from sol_hf.policy import compiled, programs
from sol_hf.policy.short_weights import ShortWeights, products_of
from support.bases import tiny_base
from support.cases import HALF, control, left_padded, prompts


SIZES = dict(base_hidden_size=32, base_embedding_size=32, policy_hidden_size=32, policy_num_heads=2, episode_length=6)
KINDS = [{}, {"action_head": "factored", "budget_prior": True, "observe_page_fill": True, "page_size": 4}]


def policy_of(**options) -> SOLPolicyModel:
    torch.manual_seed(2)
    policy = SOLPolicyModel(SOLConfig(bits=[8, 16], **SIZES, **options)).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return policy


def scores_of(policy, inputs, cache, compiled: bool) -> torch.Tensor:
    """Logits `(rows, 1, n_actions)` of a step, by its modules, or by compiled code where that can run."""
    logits = policy.step(*(x[:, 0] for x in inputs), cache) if compiled else None
    return policy(*inputs, past_key_values=cache).logits if logits is None else logits[:, None]


def step(policy, rows: int, cache, compiled: bool, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    state, embedding, scalars = (torch.randn(rows, 1, size) for size in (32, 32, 9))
    scalars[..., -1] = 0.25 * (1 + seed % 4)
    previous = torch.randint(0, len(policy.config.action_space) + 1, (rows, 1))
    with torch.no_grad():
        return scores_of(policy, (state, embedding, scalars, previous), cache, compiled)


@pytest.fixture
def ran(monkeypatch):
    """Rows of every step that ran as a program."""
    rows, own = [], compiled.PolicyProgram.__call__

    def call(self, state, *further):
        rows.append(len(state))
        return own(self, state, *further)

    monkeypatch.setattr(compiled.PolicyProgram, "__call__", call)
    choose = compiled.PolicyProgram.choose
    monkeypatch.setattr(compiled.PolicyProgram, "choose", lambda *given: rows.append(given[1].rows) or choose(*given))
    return rows


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), steps=st.integers(1, 6), crop=st.integers(0, 3), kind=st.sampled_from(KINDS))
def test_every_step_of_an_episode(rows, steps, crop, kind):
    policy = policy_of(**kind)
    caches = DynamicCache(), DynamicCache()
    for number in range(steps):
        expected, found = (
            step(policy, rows, cache, by, number) for cache, by in zip(caches, (False, True), strict=True)
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for cache in caches:
        cache.crop(-min(crop, steps - 1))
        cache.batch_select_indices(torch.arange(rows).flip(0))
    if caches[0].get_seq_length() < 6:
        expected, found = (step(policy, rows, cache, by, 9) for cache, by in zip(caches, (False, True), strict=True))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_rows_are_independent():
    policy, caches = policy_of(), [DynamicCache() for _ in range(2)]
    together = step(policy, 3, caches[0], True, 4)
    torch.manual_seed(4)
    state, embedding, scalars = (torch.randn(3, 1, size) for size in (32, 32, 9))
    previous = torch.randint(0, len(policy.config.action_space) + 1, (3, 1))
    with torch.no_grad():
        alone = scores_of(policy, [x[1:2] for x in (state, embedding, scalars, previous)], caches[1], True)
    torch.testing.assert_close(together[1:2], alone, atol=1e-6, rtol=1e-6)


def test_changed_weights_count(ran):
    policy = policy_of()
    before = step(policy, 2, DynamicCache(), True, 1)
    with torch.no_grad():
        policy.layers[0].attention.q_proj.weight.mul_(2)
        policy.final_norm.weight.data = policy.final_norm.weight * 1.5
    found, expected = (step(policy, 2, DynamicCache(), by, 1) for by in (True, False))
    assert not torch.allclose(found, before) and len(ran) == 2
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class TestModulesRun:
    def test_with_a_hook(self, ran):
        policy, called = policy_of(), []
        policy.layers[0].mlp.register_forward_hook(lambda *_: called.append(1))
        step(policy, 2, DynamicCache(), True, 1)
        assert called and not ran

    def test_with_an_adapter(self, ran):
        policy = policy_of()
        policy.layers[0].attention.q_proj = torch.nn.Sequential(policy.layers[0].attention.q_proj, torch.nn.Tanh())
        step(policy, 2, DynamicCache(), True, 1)
        assert not ran

    def test_in_another_dtype(self, ran):
        step(policy_of().bfloat16(), 2, DynamicCache(), True, 1)
        assert not ran

    def test_of_a_class_with_another_forward(self, ran):
        class Doubled(SOLPolicyModel):
            def forward(self, *inputs, **options):
                output = super().forward(*inputs, **options)
                output.logits = 2 * output.logits
                return output

        policy = policy_of()
        expected = 2 * step(policy, 2, DynamicCache(), False, 1)
        policy.__class__ = Doubled
        assert torch.equal(step(policy, 2, DynamicCache(), True, 1), expected) and not ran

    def test_beyond_the_episode(self, ran):
        policy, cache = policy_of(), DynamicCache()
        for number in range(6):
            step(policy, 2, cache, True, number)
        with pytest.raises(ValueError, match="7 steps do not fit an episode of 6"):
            step(policy, 2, cache, True, 6)

    def test_with_gradients(self, ran):
        policy = policy_of()
        state, scalars, previous = torch.randn(2, 1, 32), torch.randn(2, 1, 9), torch.zeros(2, 1, dtype=torch.long)
        scores_of(policy, (state, state, scalars, previous), DynamicCache(), True).sum().backward()
        assert not ran and policy.input_projection.weight.grad is not None


@pytest.mark.parametrize("backend", ["auto", "fast", "reference"])
def test_texts_under_every_backend(backend, ran):
    model = control(tiny_base("llama"))
    model.policy.float()
    rows = [prompts(1, length, seed=length)[0] for length in (20, 31)]
    call = dict(max_new_tokens=9, do_sample=False, pad_token_id=0, **HALF, **left_padded(rows))
    texts = [model.generate(backend=name, **call) for name in ("reference", backend)]
    assert torch.equal(*texts)
    assert ran == ([] if backend == "reference" else [2] * 9)


class TestWeightsInBfloat16:
    """Weights that are bfloat16 numbers are read in half the bytes, and give the same to the bit."""

    def rounded(self) -> SOLPolicyModel:
        policy = policy_of(action_head="factored", budget_prior=True)
        policy.round_weights()
        return policy

    def reads(self, policy) -> set[torch.dtype]:
        """In which dtypes a step reads the weights of products."""
        with torch.no_grad():
            short = programs.program_of(policy, 2)._short
        return {short.of(module.weight).dtype for module in products_of(policy)}

    def test_the_same_scores(self, monkeypatch):
        policy = self.rounded()
        found, cache = [step(policy, 2, DynamicCache(), True, 1)], DynamicCache()
        assert self.reads(policy) == {torch.bfloat16}
        expected = step(policy, 2, DynamicCache(), False, 1)
        torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)
        monkeypatch.setattr(ShortWeights, "of", lambda self, weight: weight)
        with torch.no_grad():
            policy.input_projection.weight.mul_(1)  # so that the program is made again
        assert torch.equal(step(policy, 2, cache, True, 1), found[0])

    def test_other_weights_are_read_as_they_are(self):
        policy = policy_of()
        step(policy, 2, DynamicCache(), True, 1)
        assert self.reads(policy) == {torch.float32}

    @pytest.mark.parametrize("way", ["in place", "data", "step of an optimizer"])
    def test_changed_weights_count(self, way):
        policy = self.rounded()
        before, weight = step(policy, 2, DynamicCache(), True, 1), policy.layers[0].mlp[0].weight
        if way == "data":
            weight.data.mul_(1.7)
        elif way == "in place":
            with torch.no_grad():
                weight[3] += 0.5
        else:
            weight.grad = torch.ones_like(weight)
            torch.optim.SGD([weight], lr=0.3).step()
        found, expected = (step(policy, 2, DynamicCache(), by, 1) for by in (True, False))
        assert not torch.allclose(found, before)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
