# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A cache belongs to a model: another one refuses it, and what something else did to it is noticed."""

import copy
import pickle

import pytest
import torch
from transformers import LlamaForCausalLM

from sol_hf import FixedController, SOLCache, SOLForCausalLM
from support.bases import tiny_base
from support.cases import HALF, control, prompts


RUN = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True}
OTHER_SETTINGS = {
    "page_size": 8,
    "bits": [2, 8, 16],
    "token_keep": [0.2, 0.5, 1.0],
    "criterion": "recency",
    "selection": "group",
    "episode_length": 9,
}


@pytest.fixture(scope="module")
def base():
    return tiny_base("llama", torch.float64)


@pytest.fixture(scope="module")
def model(base) -> SOLForCausalLM:
    return control(base)


@pytest.fixture
def turn(model):
    return model.generate(prompts(), **RUN, **HALF)


def more(turn) -> torch.Tensor:
    return torch.cat([turn.sequences, prompts(2, 3, seed=5)], dim=1)


def assert_refused(other: SOLForCausalLM, turn, message: str) -> None:
    """In a turn under a budget, a dense turn and a forward, before the base runs."""

    def fail(*_):
        raise AssertionError("the base ran")

    handle, cache = other.base.register_forward_pre_hook(fail), turn.past_key_values
    length = cache.get_seq_length()
    try:
        for call in (
            lambda: other.generate(more(turn), **RUN, **HALF, past_key_values=cache),
            lambda: other.generate(more(turn), **RUN, past_key_values=cache),
            lambda: other(prompts(2, 3, seed=5), past_key_values=cache),
        ):
            with pytest.raises(ValueError, match=message):
                call()
    finally:
        handle.remove()
    assert cache.get_seq_length() == length


class TestOtherModels:
    @pytest.mark.parametrize("name", OTHER_SETTINGS)
    def test_other_settings(self, base, turn, name):
        other = control(base, **{name: OTHER_SETTINGS[name]})
        assert_refused(other, turn, f"made by another model: .*`{name}`.* differ. Pass `model.new_cache")

    def test_other_weights_of_an_equal_config(self, turn):
        twin = tiny_base("llama", torch.float64)
        with torch.no_grad():
            twin.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        assert_refused(control(twin), turn, "another model: the weights of the base differ")

    def test_weights_changed_in_place_are_read_anew(self):
        model = control(tiny_base("llama", torch.float64))
        turn = model.generate(prompts(), **RUN, **HALF)
        with torch.no_grad():
            model.base.model.layers[1].mlp.down_proj.weight.mul_(1.5)
        output = model.generate(more(turn), **RUN, **HALF, past_key_values=turn.past_key_values)
        assert output.sequences.shape == (2, 31)

    def test_another_config_of_the_base(self, turn):
        assert_refused(control(tiny_base("llama", torch.float64, rope_theta=5.0)), turn, "the config of the base")
        assert_refused(control(tiny_base("llama", torch.float32)), turn, "the dtype of the base")

    def test_another_class(self, turn):
        assert_refused(control(tiny_base("qwen2", torch.float64)), turn, "the class of the base, the config")

    def test_another_adapter(self):
        peft = pytest.importorskip("peft")
        base = tiny_base("llama", torch.float64)
        adapted = peft.get_peft_model(base, peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False))
        model = control(adapted)
        turn = model.generate(prompts(), **RUN, **HALF)
        with adapted.disable_adapter():
            assert_refused(model, turn, "another model: the active adapters of the base differ")
        assert model.generate(more(turn), **RUN, **HALF, past_key_values=turn.past_key_values)

    def test_an_equal_model_takes_it(self, model, turn):
        """Also one that is loaded again, in another process."""
        twin = control(tiny_base("llama", torch.float64))
        cache = pickle.loads(pickle.dumps(turn.past_key_values))
        output = twin.generate(more(turn), **RUN, **HALF, past_key_values=cache)
        expected = model.generate(more(turn), **RUN, **HALF, past_key_values=turn.past_key_values)
        assert torch.equal(output.sequences, expected.sequences)

    def test_another_policy_takes_it(self, base, turn):
        torch.manual_seed(8)
        other = SOLForCausalLM.from_base(base, copy.deepcopy(control(base).config))
        assert other.generate(more(turn), **RUN, token_keep=0.5, past_key_values=turn.past_key_values)

    def test_new_embeddings_change_no_keys(self, turn):
        base = tiny_base("llama", torch.float64)
        model = control(base)
        cache = model.generate(prompts(), **RUN, **HALF).past_key_values
        with torch.no_grad():
            base.get_output_embeddings().weight.mul_(1.01)
        model(prompts(2, 3, seed=5), past_key_values=cache)
        assert cache.get_seq_length() == 26

    def test_a_cache_made_by_hand(self, model, base):
        cache = SOLCache(base.config, model.action_space, model.config.page_size)
        output = model.generate(prompts(), **RUN, **HALF, past_key_values=cache)
        assert torch.equal(output.sequences, model.generate(prompts(), **RUN, **HALF).sequences)
        strange = SOLCache(base.config, model.action_space, 16)
        with pytest.raises(ValueError, match="another action space or page size"):
            model.generate(prompts(), **RUN, **HALF, past_key_values=strange)
        with pytest.raises(ValueError, match="another action space or page size"):
            model(prompts(), past_key_values=SOLCache(base.config, control(base, bits=[4, 16]).action_space, 4))


class TestTheBaseAlone:
    """`model.base.generate(past_key_values=cache)` adds tokens of which the cache's episode knows nothing."""

    def alone(self, model, turn, **options):
        text = more(turn)
        options = {"attention_mask": torch.ones_like(text), **RUN, **options}
        return model.base.generate(text, past_key_values=turn.past_key_values, **options)

    def test_within_an_episode_it_is_noticed(self, model, turn):
        sequences = self.alone(model, turn).sequences
        text = torch.cat([sequences, prompts(2, 3, seed=6)], dim=1)
        message = "holds 30 tokens, but its model has processed 23: .*`cache.crop.-7.`"
        settings = {"attention_mask": torch.ones_like(text), "past_key_values": turn.past_key_values, **RUN}
        for options in (HALF, {}):
            with pytest.raises(ValueError, match=message):
                model.generate(text, **settings, **options)
        with pytest.raises(ValueError, match=message):
            model(text[:, 30:], past_key_values=turn.past_key_values)

    def test_after_dropping_its_tokens_the_text_goes_on(self, model, turn):
        again = model.generate(prompts(), **RUN, **HALF)
        self.alone(model, turn)
        turn.past_key_values.crop(-7)
        settings = {"attention_mask": torch.ones_like(more(turn)), **RUN, **HALF}
        outputs = [
            model.generate(more(turn), **settings, past_key_values=cache)
            for cache in (turn.past_key_values, again.past_key_values)
        ]
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)
        assert torch.equal(outputs[0].actions, outputs[1].actions)

    def test_a_crop_reaches_through_its_tokens_into_the_episode(self, model, turn):
        again = model.generate(prompts(), **RUN, **HALF)
        self.alone(model, turn)
        turn.past_key_values.crop(-9)
        again.past_key_values.crop(-2)
        ours, theirs = turn.past_key_values, again.past_key_values
        assert ours.episode.length == theirs.episode.length == 2
        text = turn.sequences[:, :22]
        outputs = [model.generate(text, **RUN, **HALF, past_key_values=cache) for cache in (ours, theirs)]
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)

    @pytest.mark.parametrize("options", [HALF, {}], ids=["budget", "dense"])
    def test_without_sparse_steps_its_tokens_are_text(self, model, options):
        cache = model.new_cache()
        first = model.base.generate(prompts(), past_key_values=cache, **RUN)
        text = torch.cat([first.sequences, prompts(2, 3, seed=6)], dim=1)
        settings = {"attention_mask": torch.ones_like(text), **RUN}
        output = model.generate(text, past_key_values=cache, **settings, **options)
        expected = model.generate(text, **settings, **options)
        assert torch.equal(output.sequences, expected.sequences)

    def test_one_new_token_after_it_is_not_enough(self, model):
        cache = model.new_cache()
        first = model.base.generate(prompts(), past_key_values=cache, **RUN)
        with pytest.raises(ValueError, match="pass two tokens or more"):
            model.generate(first.sequences, past_key_values=cache, **RUN, **HALF)

    def test_other_rows(self, model, turn):
        with pytest.raises(ValueError, match="The cache holds 2 rows, but got 1"):
            model.base(prompts(1), past_key_values=turn.past_key_values)
        cache = model.new_cache()
        model.base(prompts(), past_key_values=cache)
        with pytest.raises(ValueError, match="The cache holds 2 rows, but the input has 1"):
            model(prompts(1), past_key_values=cache)

    def test_a_base_that_dropped_tokens(self, model, turn):
        for layer in turn.past_key_values.layers:
            layer.crop(-2)
        with pytest.raises(ValueError, match="holds 21 tokens, but its model has processed 23"):
            model.generate(more(turn), **RUN, **HALF, past_key_values=turn.past_key_values)


class TestTurns:
    def test_a_mask_with_other_padding_than_before(self, model):
        mask = torch.ones(2, 20, dtype=torch.long)
        mask[0, :4] = 0
        turn = model.generate(prompts(), attention_mask=mask, **RUN, **HALF)
        text, cache = more(turn), turn.past_key_values
        with pytest.raises(ValueError, match=r"rows with \[4, 0\] padding tokens on the left, but .* all ones"):
            model.generate(text, attention_mask=torch.ones_like(text), **RUN, **HALF, past_key_values=cache)
        mask = torch.cat([mask, torch.ones(2, 7, dtype=torch.long)], dim=1)
        other = mask.index_fill(1, torch.tensor([0]), 0)
        with pytest.raises(ValueError, match=r"marks \[4, 1\] tokens on the left .* processed with \[4, 0\]"):
            model.generate(text, attention_mask=other, **RUN, **HALF, past_key_values=cache)
        with pytest.raises(ValueError, match=r"rows with \[4, 0\] padding tokens on the left"):
            model(prompts(2, 3), past_key_values=cache)
        output = model.generate(text, attention_mask=mask, **RUN, past_key_values=cache)
        assert torch.equal(output.sequences, model.base.generate(text, attention_mask=mask, **RUN).sequences)

    def test_another_controller_begins_with_a_state_of_its_own(self, model):
        """What the policy remembers of an episode is none of a policy that joins it later."""
        first = model.generate(prompts(), **RUN, **HALF)
        fixed = model.generate(
            first.sequences,
            **{**RUN, "max_new_tokens": 1},
            **HALF,
            controller=FixedController(),
            past_key_values=first.past_key_values,
        )
        cache = fixed.past_key_values
        assert cache.episode.length == 5 and not cache.episode.controller_state
        last = model.generate(fixed.sequences, **{**RUN, "max_new_tokens": 1}, **HALF, past_key_values=cache)
        assert last.past_key_values.episode.controller_state["cache"].get_seq_length() == 1


def test_a_subclass_of_a_base_is_another_class(base, turn):
    class Mine(LlamaForCausalLM):
        pass

    twin = tiny_base("llama", torch.float64)
    twin.__class__ = Mine
    assert_refused(control(twin), turn, "the class of the base differ")
