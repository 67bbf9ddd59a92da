# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`budget_horizon="generation"`, the default: after `N` steps of a call the mean of every axis is at most
`target + (largest level - target) / N`, for any controller; with `exact`, at most the target after `max_new_tokens`.

As in `test_hard_budget`, the property runs over the package's own step loop on a base without weights.
"""

import copy
import pickle

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sol_hf import Budget, Controller, FixedController, SOLConfig, SOLForCausalLM
from support.bases import tiny_base
from support.hostile import ROWS, WISHES, Adversary, budgets, policy_controller, simulate, spaces


SLACK = 1e-4
LEVELS = dict(token_keep=[0.2, 0.5, 1.0], mlp_keep=[0.4, 0.7, 1.0], bits=[4, 8, 16])
TARGETS = dict(token_keep=0.4, mlp_keep=0.6, bits=7)
SCALE = torch.tensor([1.0, 1.0, 16.0])


def assert_kept(ratios, counted, targets, largest, is_exact=False) -> None:
    """Check `ratios` `(steps, rows, axes)` of a call, of which `counted` `(steps, rows)`, or with axes, count."""
    is_top = (targets >= largest - 1e-5).expand(ratios.shape)
    ratios, largest = ratios.double(), largest.double().expand(ratios.shape)
    counted = (counted if counted.dim() == 3 else counted[..., None].expand_as(ratios)).double()
    goals = torch.where(is_top[0], largest[0], targets.double())
    number, sums = counted.cumsum(0), (ratios * counted).cumsum(0)
    assert (sums <= goals * number + (largest - goals) * (number > 0) + SLACK).all()
    is_top = is_top & counted.bool()
    assert torch.equal(ratios[is_top], largest[is_top]), "a pinned axis left its level"
    if is_exact:
        assert (sums[-1] <= goals * number[-1] + SLACK).all()


@settings(max_examples=50, deadline=None)
@given(
    data=st.data(),
    space=spaces(),
    wish=st.sampled_from(WISHES),
    sample=st.booleans(),
    exact=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_every_budget_is_kept_after_every_number_of_steps(data, space, wish, sample, exact, seed):
    torch.manual_seed(seed)
    budget = data.draw(budgets(space))
    assume(budget.controlled)
    episode_length, steps = data.draw(st.integers(1, 18)), data.draw(st.integers(1, 40))
    prompt, sink, window = (data.draw(st.integers(0, most)) for most in (12, 5, 5))
    padding = data.draw(st.lists(st.integers(0, prompt), min_size=ROWS, max_size=ROWS))
    controller = policy_controller(space, episode_length) if wish == "policy" else Adversary(wish)
    arguments = space, budget, controller, episode_length, steps, padding, prompt, sink, window, sample
    with torch.no_grad():
        cache = simulate(*arguments, exact=exact)
    actions, counted = (torch.stack(values) for values in zip(*cache.trace, strict=True))
    targets = budget.targets(ROWS, space=space)
    assert_kept(space.ratios[actions], counted, targets, space.ratios.amax(0), exact)
    held = [axis not in budget.controlled for axis in space.axis_names]
    assert (space.ratios[actions][counted][:, held] == 1).all(), "an axis without a target did not stay dense"
    assert (cache.ledger.bank.balance >= -SLACK).all()


def tiny_model(**changes) -> SOLForCausalLM:
    torch.manual_seed(0)
    config = SOLConfig(**{**LEVELS, "policy_hidden_size": 32, "episode_length": 6, **changes})
    model = SOLForCausalLM.from_base(tiny_base("llama"), config)
    for parameter in model.policy.parameters():
        parameter.data.normal_(std=0.5)
    return model


class Cycle(Controller):
    """Wants cheap actions for an episode, then dear ones."""

    def __call__(self, observation):
        wish = 1.0 if observation.total_step // observation.episode_length % 2 else -1.0
        return (wish * observation.action_space.ratios.sum(-1)).expand(observation.rows, -1)


class Dearest(Controller):
    def __call__(self, observation):
        return observation.action_space.ratios.sum(-1).expand(observation.rows, -1)


def prompts(rows=2, length=12):
    return torch.randint(2, 99, (rows, length), generator=torch.Generator().manual_seed(5))


def generate(model, ids=None, new=18, **options):
    ids = prompts() if ids is None else ids
    return model.generate(ids, max_new_tokens=new, return_dict_in_generate=True, **TARGETS, **options)


def assert_one_row_is_kept(model, actions):
    ratios = model.action_space.ratios[actions][:, None]
    assert_kept(ratios, torch.ones(len(actions), 1), Budget(**TARGETS).targets(1), torch.ones(3))


def mean_ratios(model, output, row=0):
    return model.action_space.ratios[output.actions[row]].double()


@settings(max_examples=10, deadline=None)
@given(data=st.data(), wish=st.sampled_from(WISHES[:-1]), exact=st.booleans(), seed=st.integers(0, 99))
def test_every_call_of_a_conversation_keeps_it(data, wish, exact, seed):
    model, tokens, chain = tiny_model(), prompts(2, data.draw(st.integers(1, 12))), []
    torch.manual_seed(seed)
    cache, begin = model.new_cache(), tokens.shape[1]
    for new, added in data.draw(st.lists(st.tuples(st.integers(1, 14), st.integers(0, 3)), min_size=1, max_size=3)):
        options = dict(past_key_values=cache, attention_mask=torch.ones_like(tokens), exact=exact)
        output = generate(model, tokens, new, controller=Adversary(wish), **options)
        end = tokens.shape[1] + new
        if not chain or exact:  # a call that goes on keeps the budget together with those before; exactly, alone, too
            assert_call_is_kept(model, output.actions.T, tokens.shape[1], exact)
        chain.append(output.actions.T)
        assert len(torch.cat(chain)) == end - begin
        assert_call_is_kept(model, torch.cat(chain), begin)
        tokens = torch.cat([output.sequences, prompts(2, added)], dim=1)
        if added:
            chain, begin = [], tokens.shape[1]


@settings(max_examples=10, deadline=None)
@given(
    beams=st.integers(2, 4),
    sample=st.booleans(),
    new=st.integers(1, 16),
    length=st.integers(1, 12),
    wish=st.sampled_from(WISHES[:-1]),
    exact=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_beam_keeps_it(beams, sample, new, length, wish, exact, seed):
    model = tiny_model()
    torch.manual_seed(seed)
    options = dict(num_beams=beams, num_return_sequences=beams, do_sample=sample, exact=exact)
    output = generate(model, prompts(2, length), new, controller=Adversary(wish), **options)
    assert_call_is_kept(model, output.actions.T, length, exact)


def assert_call_is_kept(model, actions, length, exact=False):
    """Check actions `(steps, rows)` after `length` tokens, under `TARGETS`."""
    (steps, rows), space = actions.shape, model.action_space
    counted = (torch.arange(length, length + steps) > 7)[:, None].expand(-1, rows)
    targets = Budget(**TARGETS).targets(rows)
    if not exact:
        return assert_kept(space.ratios[actions], counted, targets, torch.ones(3))
    number = counted.sum(0)[:, None]
    sums = (space.ratios[actions].double() * counted[..., None]).sum(0)
    assert (sums <= targets * number + SLACK).all()


def test_an_episode_spends_what_the_one_before_has_saved():
    model = tiny_model()
    free, held = (generate(model, controller=Cycle(), budget_horizon=x) for x in ("generation", "episode"))
    second = [mean_ratios(model, output)[6:12].mean(0) for output in (free, held)]
    targets = torch.tensor([0.4, 0.6, 7 / 16], dtype=torch.float64)
    assert (second[0] > targets + 0.05).all()
    assert (second[1] <= targets + SLACK).all()
    assert torch.equal(generate(model, controller=Cycle()).actions, free.actions), "it is the default"


@pytest.mark.parametrize(
    "options", [dict(do_sample=True), dict(num_beams=3), dict(num_return_sequences=2, num_beams=2)]
)
@pytest.mark.parametrize("exact", [False, True])
def test_generate_keeps_it_with_padding_sampling_and_beams(options, exact):
    model = tiny_model()
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :7] = 0
    output = generate(model, attention_mask=mask, controller=Cycle(), exact=exact, **options)
    seen = torch.tensor([12, 5]).repeat_interleave(len(output.actions) // 2)
    counted = torch.arange(18)[:, None] + seen > 7
    targets = Budget(**TARGETS).targets(len(seen))
    ratios = model.action_space.ratios[output.actions.T]
    assert_kept(ratios, counted, targets, torch.ones(3), exact)
    if exact:
        assert (output.realised / SCALE <= targets + SLACK).all()


def test_rows_that_end_apart_keep_it_each():
    model = tiny_model()
    ends = {"eos_token_id": list(range(2, 30)), "pad_token_id": 0, "min_new_tokens": 2}
    output = generate(model, prompts(6), 20, controller=Dearest(), do_sample=True, **ends)
    counts = (output.actions >= 0).sum(1)
    assert len(set(counts.tolist())) > 1
    targets = torch.tensor([0.4, 0.6, 7 / 16])
    bound = targets + (1 - targets) / counts[:, None]
    assert (output.realised / SCALE <= bound + SLACK).all()


@pytest.mark.parametrize("exact", [False, True])
def test_score_keeps_it_in_rows_of_any_length(exact):
    model = tiny_model()
    ids, mask = prompts(4, 30), torch.ones(4, 30, dtype=torch.long)
    mask[1, 22:], mask[2, 14:] = 0, 0
    output = model.score(ids, mask, context_length=10, controller=Cycle(), exact=exact, **TARGETS)
    assert output.step_mask.sum(1).tolist() == [19, 11, 3, 19]
    targets = Budget(**TARGETS).targets(4)
    ratios = model.action_space.ratios[output.actions.T.clamp(min=0)]
    assert_kept(ratios, output.step_mask.T, targets, torch.ones(3), exact)
    alone = model.score(ids[1:2, :22], context_length=10, controller=Cycle(), exact=exact, **TARGETS)
    assert torch.equal(alone.actions[0], output.actions[1, :11])


def test_score_repeats_what_generate_chose():
    model = tiny_model()
    output = generate(model, new=30)
    again = model.score(output.sequences, context_length=11, **TARGETS)
    assert torch.equal(again.actions, output.actions)
    torch.testing.assert_close(again.realised, output.realised)


def test_a_row_chooses_the_same_alone_and_in_a_batch():
    model = tiny_model()
    ids = prompts(3)
    together = generate(model, ids, 30)
    for row in range(3):
        assert torch.equal(generate(model, ids[row : row + 1], 30).actions[0], together.actions[row])


@pytest.mark.parametrize("first", [1, 4, 6, 11])
@pytest.mark.parametrize("controller", [Dearest, Cycle, None])
def test_a_call_that_goes_on_with_a_text_goes_on_with_its_bank(first, controller):
    model, tokens, actions = tiny_model(), prompts(1), []
    cache = model.new_cache()
    for steps in (first, 20 - first):
        output = generate(model, tokens, steps, past_key_values=cache, controller=controller and controller())
        tokens = output.sequences
        actions.append(output.actions)
    assert_one_row_is_kept(model, torch.cat(actions, dim=1)[0])
    if controller is not Cycle:  # which counts the steps of a call
        whole = generate(model, prompts(1), 20, controller=controller and controller())
        assert torch.equal(whole.sequences, tokens) and torch.equal(whole.actions, torch.cat(actions, dim=1))


def test_what_was_saved_under_another_target_is_lost_and_what_is_owed_is_not():
    model = tiny_model()
    for first, dear in ((Adversary("cheapest"), 1), (Dearest(), 0)):
        output = generate(model, prompts(1), 4, controller=first)
        options = {**TARGETS, "token_keep": 0.3, "past_key_values": output.past_key_values}
        after = model.generate(
            output.sequences, max_new_tokens=9, return_dict_in_generate=True, controller=Dearest(), **options
        )
        kept = model.action_space.values[after.actions[0], 0]
        assert (kept.cumsum(0) <= 0.3 * torch.arange(1, 10) + 0.7 + SLACK).all()
        assert (kept == 1).sum() == dear


def test_a_text_that_is_asked_for_token_by_token_keeps_it():
    model, tokens, actions = tiny_model(), prompts(1), []
    cache = model.new_cache()
    for _ in range(15):
        output = generate(model, tokens, 1, past_key_values=cache, controller=Dearest())
        tokens = output.sequences
        actions.append(output.actions[0])
    assert_kept(
        model.action_space.ratios[torch.stack(actions)],
        torch.ones(15, 1),
        Budget(**TARGETS).targets(1),
        1.0 * torch.ones(3),
    )


def test_a_turn_with_new_tokens_begins_a_bank():
    model = tiny_model()
    cache = model.new_cache()
    first = generate(model, prompts(1), 9, past_key_values=cache, controller=Dearest())
    tokens = torch.cat([first.sequences, prompts(1, 4)], dim=1)
    second = generate(model, tokens, 9, past_key_values=cache, controller=Dearest())
    assert torch.equal(second.actions, first.actions)


def test_what_a_copy_of_the_cache_owes_is_copied():
    model = tiny_model()
    first = generate(model, prompts(1), 3, controller=Dearest())
    caches = [
        first.past_key_values,
        copy.deepcopy(first.past_key_values),
        pickle.loads(pickle.dumps(first.past_key_values)),
    ]
    found = [generate(model, first.sequences, 8, past_key_values=x, controller=Dearest()).actions for x in caches]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_text_that_is_taken_back_gives_back_what_it_spent():
    model = tiny_model()
    first = generate(model, prompts(1), 4, controller=Dearest())
    cache = first.past_key_values
    before = cache.ledger.bank.begin.clone()
    cache.crop(-cache.episode.length)
    torch.testing.assert_close(cache.ledger.bank.balance, before)


def test_steps_of_a_short_text_are_no_part_of_it():
    model = tiny_model(short_text_tokens=20)
    output = generate(model, prompts(1), 40, controller=Cycle(), exact=True)
    ratios = model.action_space.ratios[output.actions.T]
    counted = torch.ones(40, 1, 3, dtype=torch.bool)
    counted[:9, :, 0] = False  # they see 12 to 20 keys
    assert (ratios[:9, :, 0] == 1).all()
    assert_kept(ratios, counted, Budget(**TARGETS).targets(1), torch.ones(3), is_exact=True)


def test_what_is_read_of_planes_is_what_the_bank_counts():
    model = tiny_model(bits=[4, 7, 16])
    output = generate(model, new=24, bits_backend="nested", controller=Dearest())
    assert (output.realised[:, 2] <= 7 + 9 / 24 + SLACK).all()
    spent = torch.tensor([4.0, 8.0, 16.0])
    bits = model.action_space.values[output.actions][..., 2]
    read = spent[(bits[..., None] == torch.tensor([4.0, 7.0, 16.0])).long().argmax(-1)]
    assert (read.cumsum(1) <= 7 * torch.arange(1, 25) + 9 + SLACK).all()


class Asked(FixedController):
    """Notes the targets that it sees."""

    follows_bank = True

    def __init__(self, wish):
        super().__init__()
        self.wish, self.seen = wish, []

    def __call__(self, observation):
        self.seen.append(observation.targets[0].clone())
        return self.wish(observation)


def test_what_the_policy_is_asked_follows_the_bank():
    model, targets = tiny_model(), torch.tensor([0.4, 0.6, 7 / 16])
    controller = Asked(Cycle())
    generate(model, prompts(1), 18, controller=controller)
    seen = torch.stack(controller.seen)
    assert torch.equal(seen[:6], targets.expand(6, -1)), "the first episode is asked for the target"
    saved = 6 * (targets - torch.tensor([0.2, 0.4, 0.25]))
    torch.testing.assert_close(seen[6:12], (targets + saved / 32).expand(6, -1))
    plain = Asked(Cycle())
    plain.follows_bank = False
    generate(model, prompts(1), 18, controller=plain)
    assert torch.equal(torch.stack(plain.seen), targets.expand(18, -1)), "others see the target"
    episode = Asked(Cycle())
    generate(model, prompts(1), 18, controller=episode, budget_horizon="episode")
    assert torch.equal(torch.stack(episode.seen), targets.expand(18, -1))


def test_what_is_saved_is_bounded():
    model = tiny_model(episode_length=20)
    controller = Asked(Adversary("cheapest"))
    ids = prompts(1, 90)
    model.score(ids, context_length=9, controller=controller, token_keep=0.9, mlp_keep=0.9, bits=15)
    assert max(x[0] for x in controller.seen) <= 1.0
    torch.testing.assert_close(controller.seen[-1][1], torch.tensor(0.9 + 0.1))
    output = model.score(prompts(1, 200), context_length=9, controller=Late(), token_keep=0.5, mlp_keep=0.9, bits=15)
    kept = model.action_space.values[output.actions[0]][:, 0]
    dear = kept[100:].tolist()
    assert dear[:8] == [1.0] * 8, "4 are saved, and every dear step takes .5 of them"
    assert dear[8] == 0.5


class Late(Controller):
    """Cheap for 100 steps, then dear."""

    def __call__(self, observation):
        wish = 1.0 if observation.total_step >= 100 else -1.0
        return (wish * observation.action_space.ratios.sum(-1)).expand(observation.rows, -1)


def test_hostile_code_cannot_change_the_bank():
    class Thief(Dearest):
        def __call__(self, observation):
            observation.ledger.bank.balance.fill_(99)
            observation.ledger.bank = None
            return super().__call__(observation)

    model = tiny_model()
    output = generate(model, prompts(1), 20, controller=Thief())
    assert_kept(
        model.action_space.ratios[output.actions.T], torch.ones(20, 1), Budget(**TARGETS).targets(1), torch.ones(3)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(budget_horizon="forever"), "`budget_horizon` must be one of generation, episode, got 'forever'"),
        (dict(exact="yes"), "`exact` must be one of True, False, got 'yes'"),
        (dict(exact=True, budget_mode="soft"), "leave out `exact`"),
        (dict(exact=True, budget_horizon="episode"), "leave out `exact`"),
        (dict(exact=True, max_new_tokens=None), "pass `max_new_tokens`"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_any_compute(options, message):
    model = tiny_model()
    arguments = {"max_new_tokens": 4, **TARGETS, **options}
    model.base.forward = None
    with pytest.raises(ValueError, match=message):
        model.generate(prompts(1), **{k: v for k, v in arguments.items() if v is not None})


def test_exact_without_a_budget_is_refused():
    with pytest.raises(ValueError, match="`exact` ends a budget at its target, and there is none"):
        tiny_model().generate(prompts(1), max_new_tokens=4, exact=True)


def test_exact_takes_the_length_of_a_generation_config():
    model = tiny_model()
    model.generation_config.max_new_tokens = 10
    output = model.generate(prompts(1), exact=True, controller=Dearest(), return_dict_in_generate=True, **TARGETS)
    assert output.actions.shape == (1, 10)
    assert (output.realised / SCALE <= torch.tensor([0.4, 0.6, 7 / 16]) + SLACK).all()


def test_a_stored_horizon_is_used():
    model = tiny_model()
    wanted = generate(model, controller=Cycle(), budget_horizon="episode").actions
    model.generation_config.budget_horizon = "episode"
    assert torch.equal(generate(model, controller=Cycle()).actions, wanted)
