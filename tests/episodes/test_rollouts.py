# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Rollouts over a shared prefix have the same results as separate rows."""

import pytest
import torch

from sol_hf import Budget, PolicyController, ScheduleController
from sol_hf.episodes.rollouts import Rollouts, SampledPolicyController, prefill, roll_out
from sol_hf.evaluation.families.tiny_configs import family_base, in_float64
from sol_hf.selection.criterion import CRITERIA
from support.bases import FAMILIES, tiny_base
from support.cases import HALF, SETTINGS, control


STEPS, REPEATS, BLOCKS = SETTINGS["episode_length"], 3, 2


def blocks_of(model, context: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(1, model.config.base_vocab_size, (BLOCKS, context + STEPS + 1), generator=generator)


def random_schedule(model, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, len(model.action_space), (STEPS, rows), generator=generator)


def targets(rows: int) -> torch.Tensor:
    return torch.full((rows, 3), 0.6)


@pytest.mark.parametrize("context", [3, 20, 21, 23, 24])
@pytest.mark.parametrize(
    ("criterion", "selection"), [(name, selection) for name in CRITERIA for selection in CRITERIA[name].selections]
)
def test_a_shared_prefix_equals_a_repeated_cache(criterion, selection, context):
    model = control(tiny_base("llama", torch.float64), criterion=criterion, selection=selection)
    check_against_rows_of_their_own(model, context)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_prefix_equals_a_repeated_cache_on(family):
    check_against_rows_of_their_own(control(tiny_base(family, torch.float64)), 21)


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2", "mixtral"])
def test_a_shared_prefix_under_sinks_soft_caps_and_experts(family):
    check_against_rows_of_their_own(control(in_float64(family_base(family))), 21)


@pytest.mark.parametrize("context", [21, 80])
@pytest.mark.parametrize("criterion", ["quest", "sketch"])
def test_a_shared_prefix_is_rounded_as_a_repeated_cache_is(criterion, context):
    """A number between two of bfloat16 may be rounded to either, hence the tolerance."""
    model = control(tiny_base("llama"), criterion=criterion, kv_dtype="bfloat16")
    check_against_rows_of_their_own(model, context, atol=1e-3, rtol=1e-3)


def check_against_rows_of_their_own(model, context: int, **tolerance: float) -> None:
    blocks, rows = blocks_of(model, context), BLOCKS * REPEATS
    schedule = ScheduleController(random_schedule(model, rows))
    rollouts = roll_out(model, prefill(model, blocks, context), blocks, targets(rows), schedule)
    alone = model.score(
        blocks.repeat_interleave(REPEATS, dim=0),
        context_length=context,
        controller=schedule,
        kv_refresh=False,
        **HALF,
        budget_mode="soft",
    )
    torch.testing.assert_close(rollouts.label_logprobs, alone.logprobs.to(rollouts.label_logprobs.dtype), **tolerance)
    assert torch.equal(rollouts.actions, alone.actions)
    assert rollouts.label_logprobs.std() > 0.1


def test_replaying_a_generation_gives_its_log_probabilities():
    model = control(tiny_base("qwen3"))
    prompt = torch.randint(1, 99, (1, 15))
    output = model.generate(
        prompt,
        max_new_tokens=STEPS + 1,
        min_new_tokens=STEPS + 1,
        do_sample=True,
        kv_refresh=False,
        return_dict_in_generate=True,
        output_logits=True,
        **HALF,
    )
    logprobs = torch.stack(output.logits, dim=1).log_softmax(dim=-1)
    generated = output.sequences[:, 15:]
    expected = logprobs.gather(-1, generated[..., None]).squeeze(-1)[:, :STEPS]
    schedule = ScheduleController(output.actions[:, :STEPS].T)
    blocks, context = output.sequences[:, : 14 + STEPS + 1], 14
    replayed = roll_out(model, prefill(model, blocks, context), blocks, targets(1), schedule)
    torch.testing.assert_close(replayed.label_logprobs, expected, atol=1e-5, rtol=0)


def test_the_policy_sees_in_a_rollout_what_it_sees_in_scoring():
    model, context = control(tiny_base("llama", torch.float64)), 20
    blocks = blocks_of(model, context)
    wanted = Budget(**HALF).targets(BLOCKS)
    rollouts = roll_out(model, prefill(model, blocks, context), blocks, wanted, PolicyController(model.policy))
    scored = model.score(blocks, context_length=context, budget_mode="soft", kv_refresh=False, **HALF)
    assert torch.equal(rollouts.actions, scored.actions)
    at_once = model.policy(
        rollouts.hidden_states, rollouts.token_embeddings, rollouts.scalars, rollouts.previous_actions
    )
    assert torch.equal(at_once.logits.argmax(-1), rollouts.actions)


def test_sampled_actions_follow_the_policy_and_depend_on_their_own_numbers_only():
    model, context, rows = control(tiny_base("llama", torch.float64)), 20, 64
    blocks = blocks_of(model, context)
    uniforms = torch.rand(BLOCKS * rows, STEPS, generator=torch.Generator().manual_seed(0))
    wanted = targets(BLOCKS * rows)
    prefix = prefill(model, blocks, context)
    rollouts = roll_out(model, prefix, blocks, wanted, SampledPolicyController(model.policy, uniforms, 1.3))
    logits = model.policy(
        rollouts.hidden_states, rollouts.token_embeddings, rollouts.scalars, rollouts.previous_actions
    ).logits
    logprobs = (logits.float() / 1.3).log_softmax(-1).gather(-1, rollouts.actions[..., None]).squeeze(-1)
    torch.testing.assert_close(rollouts.action_logprobs, logprobs, atol=1e-5, rtol=0)
    assert rollouts.actions[:, 0].unique().numel() > 8
    second = roll_out(
        model,
        prefill(model, blocks[1:], context),
        blocks[1:],
        wanted[rows:],
        SampledPolicyController(model.policy, uniforms[rows:], 1.3),
    )
    assert torch.equal(second.actions, rollouts.actions[rows:])


def test_divergence_is_zero_for_dense_steps_and_positive_for_sparse_ones():
    model, context = control(tiny_base("llama")), 20
    blocks = blocks_of(model, context)
    prefix = prefill(model, blocks, context, dense=True)
    dense = torch.full((STEPS, 2), model.action_space.dense_id)
    cheap = dense.clone()
    cheap[:, 1] = 0
    rollouts = roll_out(model, prefix, blocks, targets(2 * BLOCKS), ScheduleController(cheap.repeat(1, BLOCKS)))
    assert rollouts.divergence[::2].abs().max() < 1e-5
    assert rollouts.divergence[1::2].min() > 1e-4
    torch.testing.assert_close(
        rollouts.label_logprobs[::2], labels_of(prefix.logprobs, blocks, context), atol=1e-5, rtol=0
    )


def labels_of(logprobs: torch.Tensor, blocks: torch.Tensor, context: int) -> torch.Tensor:
    return logprobs.gather(-1, blocks[:, context + 1 :, None]).squeeze(-1)


def test_the_prefix_is_neither_repeated_nor_changed():
    model, context = control(tiny_base("llama")), 24
    blocks = blocks_of(model, context)
    prefix = prefill(model, blocks, context)
    before = [layer.keys.clone() for layer in prefix.cache.layers]
    fanned = prefix.cache.fan_out(REPEATS, prefix.hidden_states[:, 0], context)
    for layer, source in zip(fanned.layers, prefix.cache.layers, strict=True):
        assert layer.prefix.keys.data_ptr() == source.keys.data_ptr()
        assert layer.prefix.length == 24 and layer.length == 0
    first = roll_out(model, prefix, blocks, targets(4), PolicyController(model.policy))
    again = roll_out(model, prefix, blocks, targets(4), PolicyController(model.policy))
    assert torch.equal(first.label_logprobs, again.label_logprobs)
    assert all(torch.equal(old, layer.keys) for old, layer in zip(before, prefix.cache.layers, strict=True))


def test_concatenated_rollouts_can_be_trained_on():
    model, context = control(tiny_base("llama")), 20
    blocks = blocks_of(model, context)
    part = roll_out(model, prefill(model, blocks, context), blocks, targets(2), PolicyController(model.policy))
    both = Rollouts.concatenate([part, part])
    assert len(both.actions) == 4 and not both.hidden_states.is_inference()
    model.policy(
        both.hidden_states, both.token_embeddings, both.scalars, both.previous_actions
    ).logits.sum().backward()
    assert model.policy.input_projection.weight.grad is not None


@pytest.mark.parametrize("context", [0, 26])
def test_blocks_without_a_step_are_refused(context):
    model = control(tiny_base("llama"))
    with pytest.raises(ValueError, match="leave no step to score"):
        prefill(model, torch.ones(1, 27, dtype=torch.long), context)


def test_budgets_that_do_not_fit_the_blocks_are_refused():
    model = control(tiny_base("llama"))
    blocks = blocks_of(model, 20)
    with pytest.raises(ValueError, match="3 budgets cannot be divided among 2 blocks"):
        roll_out(model, prefill(model, blocks, 20), blocks, targets(3), PolicyController(model.policy))
