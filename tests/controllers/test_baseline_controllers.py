# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers that follow a signal: their arithmetic, their inputs, and their state when rows are reordered."""

import math
from dataclasses import replace

import pytest
import torch

from sol_hf import (
    ActionSpace,
    Controller,
    DriftController,
    EntropyController,
    FixedController,
    PolicyController,
    RandomController,
    make_controller,
)
from sol_hf.budget.ledger import BudgetLedger
from sol_hf.controllers.signal import SignalController, spend
from sol_hf.episodes.rollouts import prefill, roll_out
from support.bases import FAMILIES, tiny_base
from support.cases import HALF, SETTINGS, control, left_padded, prompts, sol_model
from support.extra_axis import four_axes
from support.observations import observe


SPACE = ActionSpace([0.2, 0.6, 1.0], [0.5, 1.0], [4, 8, 16])
SIGNALS = {"entropy": EntropyController, "drift": DriftController}
every_signal = pytest.mark.parametrize("name", SIGNALS)


class Told(SignalController):
    """A signal that is given."""

    def __init__(self, value: float):
        super().__init__()
        self.value = value

    def signal(self, observation):
        return torch.full((observation.rows,), self.value)


class Watched(Controller):
    """Keeps the signals of another controller."""

    def __init__(self, controller):
        self.controller, self.signals = controller, []
        self.needs_logits, self.digest_logits = controller.needs_logits, controller.digest_logits

    def __call__(self, observation):
        self.signals.append(self.controller.signal(observation))
        return self.controller(observation)


def play(controller, target: list[float], length: int = 16, space: ActionSpace = SPACE) -> torch.Tensor:
    """Levels `(length, axes)` in ratio units of one episode of a single row."""
    ledger, levels = BudgetLedger(1, space), []
    for step in range(length):
        observation = observe(1, space, torch.tensor([target]), step=step, length=length, ledger=ledger)
        levels.append(space.ratios[controller(observation).argmax(-1)])
        ledger.record(levels[-1], torch.tensor([True]))
    return torch.cat(levels)


class TestSpending:
    def test_by_hand(self):
        levels = torch.tensor([0.2, 0.6, 1.0], dtype=torch.float64)
        unspent = torch.tensor([4.0, 4.0, 4.0, 0.5, 2.0, 9.0], dtype=torch.float64)
        left = torch.tensor([8.0, 8.0, 8.0, 1.0, 2.0, 9.0], dtype=torch.float64)
        urge = torch.tensor([0.0, -0.26, 0.1, 0.5, -0.5, -0.5], dtype=torch.float64)
        # c = .5, share .75; the same, lowered to .49; raised; the last step may not overspend; both left have to be 1.
        assert spend(levels, unspent, left, urge).tolist() == [0.6, 0.2, 0.6, 0.2, 1.0, 1.0]

    def test_an_urge_that_meets_one_half_takes_the_upper_level(self):
        levels = torch.tensor([0.25, 0.75], dtype=torch.float64)
        half = torch.tensor([2.0], dtype=torch.float64)
        assert spend(levels, half, half * 2, torch.tensor([0.0])).item() == 0.75
        assert spend(levels, half, half * 2, torch.tensor([-1e-6])).item() == 0.25

    @pytest.mark.parametrize("signal", [0.0, 0.3, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("target", [[0.3, 0.6, 0.4], [0.9, 0.8, 0.7], [0.45, 0.95, 0.3]])
    def test_an_episode_meets_its_target_from_below(self, signal, target):
        means = play(Told(signal), target).mean(dim=0)
        steps = torch.tensor([0.4, 0.5, 0.5])
        assert (means <= torch.tensor(target) + 1e-6).all()
        assert (means > torch.tensor(target) - steps / 16 - 1e-6).all()

    @pytest.mark.parametrize("signal", [0.0, 0.5, 1.0])
    def test_an_episode_meets_the_target_of_an_added_axis_from_below(self, signal, mlp_noise):
        target = [0.45, 0.8, 0.4, 0.7]
        means = play(Told(signal), target, space=four_axes()).mean(dim=0)
        assert (means <= torch.tensor(target) + 1e-6).all()
        assert (means > torch.tensor(target) - torch.tensor([0.4, 0.5, 0.5, 0.5]) / 16 - 1e-6).all()

    def test_a_high_signal_spends_early(self):
        high, low = play(Told(1.0), [0.4, 0.75, 0.375]), play(Told(0.0), [0.4, 0.75, 0.375])
        assert (high[:4].mean(dim=0) > low[:4].mean(dim=0)).all()

    def test_a_target_at_the_edge_of_the_levels_is_that_level(self):
        assert play(Told(0.1), [1.0, 1.0, 1.0]).eq(1.0).all()
        assert play(Told(0.9), [0.2, 0.5, 0.25]).eq(torch.tensor([0.2, 0.5, 0.25])).all()

    def test_the_base_class_leaves_the_signal_to_others(self):
        with pytest.raises(NotImplementedError):
            SignalController()(observe(targets=torch.ones(2, 3)))

    @every_signal
    def test_they_need_a_budget(self, name):
        digest = torch.full((2,), 0.5)
        with pytest.raises(ValueError, match="needs a budget"):
            SIGNALS[name]()(observe(logits_digest=digest, previous_embedding=torch.randn(2, 5)))


class TestEntropySignal:
    def test_by_hand(self):
        logits = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25] * 4, [1.0, 0.0, 0.0, 0.0]]).log()
        entropy, margin = torch.tensor([0.75, 1.0, 0.0]), torch.tensor([0.25, 0.0, 1.0])
        for mix in (1.0, 0.0, 0.3):
            digest = EntropyController(mix).digest_logits(logits)
            torch.testing.assert_close(digest, mix * entropy + (1 - mix) * (1 - margin))

    def test_it_is_that_of_the_last_token(self):
        model, ids = sol_model(), prompts()
        watched = Watched(EntropyController())
        model.score(ids, context_length=12, **HALF, budget_mode="soft", controller=watched)
        logits = model.base(ids).logits[:, 11].float()
        probability = logits.softmax(-1)
        expected = -(probability * probability.log()).sum(-1) / math.log(logits.shape[-1])
        torch.testing.assert_close(watched.signals[0], expected)

    def test_a_mix_outside_of_its_range_is_refused(self):
        with pytest.raises(ValueError, match=r"`mix` must lie in 0..1, got 1.5"):
            EntropyController(mix=1.5)

    def test_nothing_of_the_size_of_the_vocabulary_is_kept(self):
        model = sol_model()
        caches = {}
        for name, controller in (("policy", PolicyController(model.policy)), ("entropy", EntropyController())):
            cache = caches[name] = model.new_cache()
            model.generate(prompts(), max_new_tokens=4, **HALF, controller=controller, past_key_values=cache)
        assert caches["policy"].episode.logits_digest is None
        assert caches["entropy"].episode.logits_digest.shape == (2,)

    def test_unknown_logits_are_an_error(self):
        model = sol_model()
        cache = model.new_cache()
        sequences = model.generate(prompts(), max_new_tokens=3, **HALF, past_key_values=cache)
        with pytest.raises(ValueError, match="pass two new tokens or more"):
            model.generate(sequences, max_new_tokens=2, **HALF, controller=EntropyController(), past_key_values=cache)


class TestDriftSignal:
    def test_by_hand(self):
        step = observe(3, SPACE, step=3, hidden_state=torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]]))
        before = torch.tensor([[0.0, 2.0], [-3.0, -3.0], [4.0, 3.0]])
        signal = DriftController().signal(replace(step, previous_hidden_state=before))
        torch.testing.assert_close(signal, torch.tensor([0.5, 0.5, 0.1]))

    def test_the_first_step_of_an_episode_compares_tokens(self):
        model, ids = sol_model(), prompts()
        watched = Watched(DriftController())
        model.score(ids, context_length=10, **HALF, controller=watched)
        embeddings = model.base.get_input_embeddings()(ids).float()
        cosine = torch.cosine_similarity(embeddings[:, 1:], embeddings[:, :-1], dim=-1)
        for step in (0, SETTINGS["episode_length"]):  # the second after a KV refresh
            expected = (1 - cosine[:, 9 + step]).clamp(max=1) / 2
            torch.testing.assert_close(watched.signals[step], expected)
        assert torch.cat(watched.signals).min() < 0.5


class TestRows:
    """The state of a controller is reordered with its rows in generate, score and rollouts."""

    LENGTHS = (20, 14, 9)

    @every_signal
    @pytest.mark.parametrize("family", FAMILIES)
    def test_alone_and_in_a_padded_batch(self, family, name):
        model = sol_model(family)
        rows = [prompts(1, length, seed=length)[0] for length in self.LENGTHS]
        options = dict(**HALF, max_new_tokens=8, do_sample=False, return_dict_in_generate=True)
        batch = Watched(SIGNALS[name]())
        together = model.generate(**left_padded(rows), **options, controller=batch)
        seen = torch.stack(batch.signals, dim=1)
        assert (seen[0] - seen[1]).abs().max() > 1e-3
        for index, row in enumerate(rows):
            single = Watched(SIGNALS[name]())
            alone = model.generate(row[None], **options, controller=single)
            torch.testing.assert_close(torch.cat(single.signals), seen[index], atol=1e-5, rtol=0)
            assert torch.equal(alone.actions[0], together.actions[index])
            assert torch.equal(alone.sequences[0, len(row) :], together.sequences[index, max(self.LENGTHS) :])

    @every_signal
    @pytest.mark.parametrize("kv_refresh", [True, False])
    def test_scoring_replays_a_generation(self, name, kv_refresh):
        model = sol_model()
        options = dict(**HALF, controller=SIGNALS[name](), kv_refresh=kv_refresh)
        output = model.generate(prompts(), **options, max_new_tokens=15, do_sample=False, return_dict_in_generate=True)
        scored = model.score(output.sequences, context_length=19, **options)
        assert torch.equal(scored.actions, output.actions)

    @every_signal
    def test_beams_carry_it(self, name):
        model = sol_model()
        options = dict(**HALF, controller=SIGNALS[name]())
        output = model.generate(
            prompts(), **options, num_beams=3, max_new_tokens=10, do_sample=False, return_dict_in_generate=True
        )
        scored = model.score(output.sequences, context_length=19, **options)
        assert torch.equal(scored.actions, output.actions)

    @every_signal
    def test_a_crop_takes_it_back(self, name):
        model, ids = sol_model(), prompts()
        options = dict(**HALF, controller=SIGNALS[name](), do_sample=False, return_dict_in_generate=True)
        cache = model.new_cache()
        first = model.generate(ids, **options, max_new_tokens=5, past_key_values=cache)
        cache.crop(-2)
        again = model.generate(first.sequences[:, :-2], **options, max_new_tokens=2, past_key_values=cache)
        assert torch.equal(again.sequences, first.sequences)
        assert torch.equal(again.actions, first.actions[:, -2:])

    @every_signal
    def test_repeated_and_selected_rows_keep_theirs(self, name):
        model, ids = sol_model(), prompts()
        cache = model.new_cache()
        model.generate(ids, **HALF, controller=SIGNALS[name](), max_new_tokens=4, past_key_values=cache)
        episode = cache.episode
        before = {key: getattr(episode, key).clone() for key in ("token_before", "hidden_state")}
        digest = episode.logits_digest
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        for key, value in before.items():
            assert torch.equal(getattr(cache.episode, key), value[[1, 0]])
        assert name == "drift" or torch.equal(cache.episode.logits_digest, digest[[1, 0]])

    @every_signal
    def test_rollouts_and_scoring_agree(self, name):
        model, context = control(tiny_base("llama", torch.float64)), 20
        ids = prompts(2, context + SETTINGS["episode_length"] + 1)
        targets = torch.tensor([[0.5, 0.5, 0.5]]).expand(4, 3)
        controller = SIGNALS[name]()
        rolled = roll_out(model, prefill(model, ids, context, keep_logits=True), ids, targets, controller)
        scored = model.score(ids, context_length=context, **HALF, budget_mode="soft", controller=SIGNALS[name]())
        assert torch.equal(rolled.actions, scored.actions.repeat_interleave(2, dim=0))

    def test_a_prefix_without_logits_is_refused(self):
        model = control(tiny_base("llama"))
        ids, targets = prompts(2, 27), torch.full((2, 3), 0.5)
        with pytest.raises(ValueError, match="EntropyController needs logits: .*keep_logits=True"):
            roll_out(model, prefill(model, ids, 20), ids, targets, EntropyController())


class TestNames:
    def test_every_name(self):
        model = sol_model()
        kinds = {"fixed": FixedController, "random": RandomController, **SIGNALS}
        for name, kind in kinds.items():
            assert type(make_controller(name, model)) is kind
        assert make_controller("policy", model).policy is model.policy
        assert make_controller("dense", model) is None

    def test_a_seed(self):
        seeded = make_controller("random:7", sol_model()).generator.initial_seed()
        assert seeded == 7 and make_controller("random", sol_model()).generator.initial_seed() == 0

    @pytest.mark.parametrize("spec, near", [("entropie", "'entropy'"), ("Policy", "'policy'"), ("drif", "'drift'")])
    def test_an_unknown_name_gets_near_matches(self, spec, near):
        with pytest.raises(ValueError, match=f"Unknown controller '{spec}': it must be one of .*Did you mean {near}"):
            make_controller(spec, sol_model())

    def test_a_name_like_no_other_gets_the_list(self):
        with pytest.raises(ValueError, match="one of drift, entropy, fixed, policy, random, fixed:place, dense.$"):
            make_controller("xyzzy", sol_model())

    @pytest.mark.parametrize(
        "spec, message",
        [
            ("random:x", "the seed of `random` is a whole number"),
            ("random:", "the seed of `random` is a whole number"),
            ("random:-1", "the seed of `random` is a whole number"),
            ("fixed:3", "`fixed` takes no number"),
        ],
    )
    def test_a_seed_that_is_none(self, spec, message):
        with pytest.raises(ValueError, match=message):
            make_controller(spec, sol_model())
