# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""All tokens of a call are computed under its budget, whatever the base or a custom loop does with the cache."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from sol_hf import Controller, FixedController, PlanNotExecutedError, SOLForCausalLM, UnsupportedAxisError
from support.bases import SIZES
from support.cases import HALF, control, prompts, sol_model


GREEDY = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
FIXED = {**HALF, "controller": FixedController()}


def stacked(output) -> torch.Tensor:
    return torch.stack(output.logits, dim=1)


def long_rope(switch: int) -> SOLForCausalLM:
    """Phi-3 whose rotary factors change when the text is longer than `switch` tokens."""
    rope = dict(
        rope_type="longrope", rope_theta=1e4, long_factor=[2.0] * 4, short_factor=[1.0] * 4,
        original_max_position_embeddings=switch,
    )  # fmt: skip
    config = AutoConfig.for_model("phi3", **SIZES, rope_parameters=rope, original_max_position_embeddings=switch)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    base.generation_config.pad_token_id = 0
    return control(base)


class AllDense(Controller):
    """Asks for dense steps, so that the result must be the base's."""

    needs_budget = False

    def __call__(self, observation):
        scores = torch.zeros(observation.rows, len(observation.action_space))
        scores[:, observation.action_space.dense_id] = 1
        return scores


class Dearest(Controller):
    def __call__(self, observation):
        return observation.action_space.ratios.sum(-1).expand(observation.rows, -1)


class TestBasesThatDropTheCache:
    @pytest.mark.parametrize("length", [40, 25, 24, 22])
    def test_dense_steps_are_the_bases_own(self, length):
        """The switch is at 24 tokens: before, at, and after the end of the prompt."""
        model, ids = long_rope(24), prompts(length=length)
        expected = model.base.generate(ids, **GREEDY)
        output = model.generate(ids, **GREEDY, controller=AllDense())
        torch.testing.assert_close(stacked(output), stacked(expected), atol=1e-5, rtol=0)
        assert torch.equal(output.sequences, expected.sequences)

    @pytest.mark.parametrize("length", [40, 25, 24, 22])
    def test_a_budget_holds_beyond_the_switch(self, length):
        model, ids = long_rope(24), prompts(length=length)
        dense, cache = model.base.generate(ids, **GREEDY), model.new_cache()
        output = model.generate(ids, **GREEDY, **FIXED, past_key_values=cache)
        assert output.past_key_values is cache and len(cache.trace) == output.actions.shape[1] == 6
        assert cache.get_seq_length() == length + 5
        assert not torch.allclose(stacked(output)[:, -1], stacked(dense)[:, -1], atol=1e-3)
        assert (output.realised <= torch.tensor([0.6, 0.6, 9.5])).all()

    @pytest.mark.parametrize("length", [25, 24, 22, 18])
    def test_an_exact_budget_is_kept_beyond_the_switch(self, length):
        """The step at the switch is dense and does not count, so the call has one step less to make up for others."""
        output = long_rope(24).generate(prompts(length=length), **GREEDY, **HALF, controller=Dearest(), exact=True)
        target = torch.tensor([HALF["token_keep"], HALF["mlp_keep"], HALF["bits"]])
        assert (output.realised <= target + 1e-4).all()

    def test_rows_are_independent_at_the_switch(self):
        model, ids = long_rope(24), prompts(length=22)
        options = {**HALF, "controller": FixedController(across_rows=False)}
        together = model.generate(ids, **GREEDY, **options)
        for row in range(2):
            alone = model.generate(ids[row : row + 1], **GREEDY, **options)
            assert torch.equal(alone.sequences[0], together.sequences[row])

    def test_a_second_turn_that_does_not_hold_the_whole_text_is_refused(self):
        model, cache = long_rope(24), long_rope(24).new_cache()
        model.generate(prompts(length=10), **GREEDY, **FIXED, past_key_values=cache)
        mask = torch.ones(2, 15 + 30, dtype=torch.long)
        with pytest.raises(UnsupportedAxisError, match="drops the cache of 15 tokens.*pass all token ids"):
            model.generate(prompts(length=30), attention_mask=mask, **GREEDY, **FIXED, past_key_values=cache)

    def test_a_base_with_a_cache_of_its_own_is_refused(self):
        model = sol_model()
        original = model.base.prepare_inputs_for_generation

        def own_cache(*args, **kwargs):
            return original(*args, **kwargs) | {"past_key_values": DynamicCache(config=model.base.config)}

        model.base.prepare_inputs_for_generation = own_cache
        with pytest.raises(UnsupportedAxisError, match="exchanges the cache of a generation for a DynamicCache"):
            model.generate(prompts(), **GREEDY, **FIXED)
        assert model.generate(prompts(), **GREEDY).sequences.shape == (2, 26)


LOOP = """
def generate(model, input_ids=None, inputs=None, generation_config=None, **kwargs):
    return model.generate(input_ids if inputs is None else inputs, generation_config=generation_config, **kwargs)
"""


class TestCustomLoops:
    @pytest.fixture
    def folder(self, tmp_path):
        (tmp_path / "custom_generate").mkdir()
        (tmp_path / "custom_generate" / "generate.py").write_text(LOOP)
        return str(tmp_path)

    def test_a_loop_that_calls_generate_again_keeps_the_budget(self, folder):
        model, ids = sol_model(), prompts()
        expected = model.generate(ids, **GREEDY, **FIXED)
        output = model.generate(ids, custom_generate=folder, trust_remote_code=True, **GREEDY, **FIXED)
        assert torch.equal(stacked(output), stacked(expected)) and torch.equal(output.actions, expected.actions)

    def test_a_loop_that_drops_all_other_arguments_keeps_it_too(self):
        model, ids = sol_model(), prompts()
        expected = model.generate(ids, **GREEDY, **FIXED)
        options = {**GREEDY, **FIXED}

        def loop(model, input_ids, **kwargs):
            return model.generate(input_ids, **GREEDY)

        output = model.generate(ids, custom_generate=loop, **options)
        assert torch.equal(stacked(output), stacked(expected)) and torch.equal(output.actions, expected.actions)

    def test_a_loop_may_set_a_budget_of_its_own(self):
        model, ids = sol_model(), prompts()

        def loop(model, input_ids, **kwargs):
            return model.generate(input_ids, **GREEDY, bits=4, controller=FixedController())

        output = model.generate(ids, custom_generate=loop, **GREEDY, **FIXED)
        assert output.realised[0].tolist()[:2] == [1.0, 1.0] and output.realised[0, 2] < 6

    def test_a_loop_that_goes_around_the_model_is_an_error(self):
        model = sol_model()

        def loop(model, input_ids, **kwargs):
            return model.base.generate(input_ids, **GREEDY)

        with pytest.raises(PlanNotExecutedError, match="`token_keep` in 6 of 6 new tokens"):
            model.generate(prompts(), custom_generate=loop, **GREEDY, **FIXED)

    def test_a_dense_call_that_a_controller_makes_is_dense(self):
        model, texts = sol_model(), []

        class Asking(FixedController):
            def __call__(self, observation):
                if not texts:
                    texts.append(model.generate(prompts(), max_new_tokens=3, do_sample=False))
                return super().__call__(observation)

        model.generate(prompts(), **GREEDY, **{**FIXED, "controller": Asking()})
        assert torch.equal(texts[0], model.base.generate(prompts(), max_new_tokens=3, do_sample=False))


class TestForwards:
    def test_a_forward_without_the_cache_of_the_call_is_an_error(self):
        model = sol_model()

        class Forgetting(FixedController):
            def __call__(self, observation):
                model(prompts())
                return super().__call__(observation)

        with pytest.raises(ValueError, match="must use the `past_key_values` of the call.*`model.base`"):
            model.generate(prompts(), **GREEDY, **{**FIXED, "controller": Forgetting()})
        assert model(prompts()).logits.shape[:2] == (2, 20)

    def test_guidance_runs_the_base_twice_and_is_refused(self):
        with pytest.raises(ValueError, match="`guidance_scale=2.0` runs the base a second time"):
            sol_model().generate(prompts(), **GREEDY, **FIXED, guidance_scale=2.0)


class TestWithoutAPrompt:
    def test_a_stored_budget_begins_with_the_first_token(self):
        model = sol_model()
        model.generation_config.update(bits=8, bos_token_id=1)
        output = model.generate(**GREEDY)
        expected = model.generate(torch.tensor([[1]]), **GREEDY)
        assert output.sequences[0, 0] == 1 and torch.equal(output.sequences, expected.sequences)

    def test_without_a_first_token_either_the_error_says_what_to_pass(self):
        model = sol_model()
        model.generation_config.bos_token_id = None
        with pytest.raises(ValueError, match="no `bos_token_id` to begin a text with: pass `input_ids`"):
            model.generate(**GREEDY, bits=8)
