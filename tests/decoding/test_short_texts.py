# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`SOLConfig(short_text_tokens=...)`: short texts are read in full, counted as that, and long ones keep the budget."""

import copy

import pytest
import torch

from sol_hf import FixedController, RandomController, ScheduleController, SOLConfig, SOLForCausalLM
from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.episodes.block_runner import check_blocks
from support.bases import tiny_base
from support.cases import CONTROLLERS, control, left_padded, mixed_schedule, prompts


SHORT, PROMPT, NEW = 18, 12, 18
FULL = SHORT - PROMPT + 1
"""Steps of a prompt of 12 tokens that see at most 18: the first sees 12, its own included."""
RUN = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "return_dict_in_generate": True}
CHEAP = {"token_keep": 0.3, "mlp_keep": 0.6, "bits": 8}


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return control(tiny_base("llama", torch.float64), short_text_tokens=SHORT)


def levels(model, output, axis: int) -> torch.Tensor:
    """The levels of one axis that were computed, `(rows, steps)`."""
    return model.action_space.values[output.actions][..., axis]


@pytest.mark.parametrize("budget_mode", ["hard", "soft"])
@pytest.mark.parametrize("controller", CONTROLLERS)
def test_a_short_text_is_read_in_full_and_counted_as_that(model, controller, budget_mode):
    options = {"controller": CONTROLLERS[controller](model), "budget_mode": budget_mode}
    output = model.generate(prompts(2, PROMPT), **RUN, **CHEAP, **options)
    token_keep = levels(model, output, 0)
    assert (token_keep[:, :FULL] == 1).all()
    assert (token_keep[:, FULL:] < 1).any()
    assert (levels(model, output, 1)[:, :FULL] < 1).any(), "the other axes are under control from the beginning"
    torch.testing.assert_close(output.realised[:, 0], token_keep.mean(dim=1))


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_budget_of_the_call_holds_on_all_later_steps(model, controller):
    output = model.generate(prompts(2, PROMPT), **RUN, **CHEAP, controller=CONTROLLERS[controller](model))
    spent = levels(model, output, 0).double()[:, FULL:]
    number = torch.arange(1, spent.shape[1] + 1)
    assert (spent.cumsum(1) <= 0.3 * number + 0.7 + 1e-4).all()
    for axis, target, scale in ((1, 0.6, 1), (2, 8, 16)):
        assert (output.realised[:, axis] <= target + (scale - target) / NEW + 1e-4 * scale).all()


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_the_budget_of_every_episode_holds_on_all_later_steps(model, controller):
    options = {"controller": CONTROLLERS[controller](model), "budget_horizon": "episode"}
    output = model.generate(prompts(2, PROMPT), **RUN, **CHEAP, **options)
    length = model.config.episode_length
    for row in levels(model, output, 0).double():
        for begin in range(0, NEW, length):
            spent = row[max(begin, FULL) : begin + length]
            number = torch.arange(1, len(spent) + 1)
            assert (spent.cumsum(0) <= 0.3 * number + 0.7 + 1e-4).all()
            assert spent.sum() <= 0.3 * len(spent) + 1e-4 or not len(spent)
    for axis, target, scale in ((1, 0.6, 1), (2, 8, 16)):
        assert (output.realised[:, axis] <= target + 1e-4 * scale).all()


def test_a_call_without_a_budget_also_reads_short_texts_in_full(model):
    chosen = mixed_schedule(model, steps=NEW, rows=1)
    output = model.generate(prompts(1, PROMPT), **RUN, controller=ScheduleController(chosen))
    wanted = model.action_space.values[chosen[:, 0]]
    got = model.action_space.values[output.actions[0]]
    assert (got[:FULL, 0] == 1).all()
    torch.testing.assert_close(got[FULL:], wanted[FULL:])
    assert output.realised[0, 0] == pytest.approx(float(got[:, 0].mean()), abs=1e-6)


def test_a_short_text_gives_what_a_full_read_gives(model):
    text = prompts(1, SHORT)
    options = dict(context_length=PROMPT, controller=FixedController(), mlp_keep=0.7, bits=8, return_logits=True)
    cheap, full = model.score(text, token_keep=0.2, **options), model.score(text, **options)
    assert torch.equal(cheap.logits, full.logits)
    assert torch.equal(cheap.realised, full.realised)


@pytest.mark.parametrize("controller", ["policy", "entropy", "drift"])
def test_rows_of_different_lengths_are_as_alone(model, controller):
    rows = [prompts(1, length, seed=length)[0] for length in (9, 16, 24)]
    together = model.generate(**left_padded(rows), **RUN, **CHEAP, controller=CONTROLLERS[controller](model))
    for index, row in enumerate(rows):
        alone = model.generate(row[None], **RUN, **CHEAP, controller=CONTROLLERS[controller](model))
        assert torch.equal(together.sequences[index, -NEW:], alone.sequences[0, -NEW:])
        assert torch.equal(together.actions[index], alone.actions[0])
        assert torch.equal(together.realised[index], alone.realised[0])
    assert (levels(model, together, 0)[2] < 1).any()


def test_what_was_cropped_is_not_counted(model):
    cache = model.new_cache()
    run = {**RUN, "max_new_tokens": 9, "min_new_tokens": 9, "past_key_values": cache}
    model.generate(prompts(1, PROMPT), **run, **CHEAP, controller=RandomController(seed=3))
    cropped = copy.deepcopy(cache)
    cropped.crop(-cache.episode.length)
    torch.testing.assert_close(cropped.ledger.episode_sums, torch.zeros(1, 3))
    torch.testing.assert_close(cropped.ledger.budgeted_counts().expand(1, 3), torch.zeros(1, 3))


def test_beams_keep_their_own_counts(model):
    output = model.generate(prompts(1, PROMPT), **RUN, **CHEAP, num_beams=3)
    assert (levels(model, output, 0)[:, :FULL] == 1).all()
    assert levels(model, output, 0)[:, FULL:].mean() <= 0.3 + 0.7 / (NEW - FULL)


def test_a_cache_goes_on_when_the_limit_is_changed():
    base = tiny_base("llama", torch.float64)
    first, second = (control(base, short_text_tokens=tokens) for tokens in (SHORT, 64))
    turn = first.generate(prompts(1, PROMPT), **RUN, **CHEAP)
    longer = torch.cat([turn.sequences, prompts(1, 4, seed=9)], dim=1)
    mask = torch.ones_like(longer)
    output = second.generate(longer, **RUN, **CHEAP, attention_mask=mask, past_key_values=turn.past_key_values)
    assert output.realised[0, 0] == 1


def test_the_counted_bytes_of_a_short_text_are_those_of_all_tokens(model):
    space = model.action_space
    cheap, full = space.index(0.2, 1.0, 16), space.dense_id
    for context, is_short in ((8, True), (64, False)):
        found = ComputeCosts.of(model, context).bytes
        assert (found[cheap] == found[full]) == is_short


def test_full_reads_need_their_level():
    with pytest.raises(ValueError, match=r"`short_text_tokens` \(64\).*`token_keep` needs the level 1.0"):
        SOLConfig(token_keep=[0.2, 0.5], short_text_tokens=64)
    with pytest.raises(ValueError, match="short_text_tokens"):
        SOLConfig(short_text_tokens=-1)
    assert SOLConfig(short_text_tokens=64).selection_rule.short_text_tokens == 64


def test_a_measurement_of_short_texts_is_refused(model):
    blocks = prompts(3, PROMPT + model.config.episode_length + 1)
    with pytest.raises(ValueError, match=r"After a context of 12 tokens `token_keep` has no effect.*18 tokens"):
        check_blocks(model, blocks, PROMPT, batch_size=1)


def test_a_saved_policy_keeps_the_setting(model, tmp_path):
    model.save_pretrained(tmp_path)
    assert SOLConfig.from_pretrained(tmp_path).short_text_tokens == SHORT
