# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""What transformers asks of every class that generates, asked of `SOLForCausalLM` in three ways.

Without a budget a call gives what the base gives, bit for bit. With `backend="fast"` it gives the same up to rounding,
and under a budget stored in the generation config it has the same form and keeps the budget. The last two run steps
over a cache of our own. What these exclude is refused before any compute, see `test_generation_exclusions.py`:

    ===============================================  ==================================================
    excluded                                         because
    ===============================================  ==================================================
    assisted generation, prompt lookup, early exit   several tokens are checked in one forward
    contrastive, DoLa, group and constrained beams   loops of repositories, several forwards a token
    `output_attentions`                              keys that are not read have no weights
    `use_cache=False`, static and other caches       selections, refreshes and the ledger are in ours
    `guidance_scale`                                 a second forward a token, outside of the budget
    masks of four dimensions, padding on the right   pages of keys would differ from row to row
    ===============================================  ==================================================

Encoders, images and mamba states, of which the same suite has further cases, are no part of a decoder of text.
"""

from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    GenerationMixin,
    MaxLengthCriteria,
    StoppingCriteriaList,
    WatermarkingConfig,
)
from transformers.generation import GenerateBeamDecoderOnlyOutput, GenerateDecoderOnlyOutput

from sol_hf import SOLForCausalLM
from support.cases import assert_budget_kept, left_padded, prompts
from support.generation_ways import (
    ARGUMENTS,
    BASES,
    DICT,
    LENGTH,
    NEW,
    RUN,
    STORED,
    assert_like,
    model_of,
    run,
    run_base,
)


WIDTH = 32
PROCESSORS = {"bad_words_ids": [[1, 0]], "repetition_penalty": 1.2, "remove_invalid_values": True}
WARPERS = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
BEAMS = {"num_beams": 2, "length_penalty": 2.0, "early_stopping": False}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {**RUN, **PROCESSORS},
    "sample": {**RUN, **PROCESSORS, **WARPERS, "num_return_sequences": 2},
    "beams": {**RUN, **PROCESSORS, **BEAMS},
    "beam sample": {**RUN, **PROCESSORS, **WARPERS, **BEAMS, "num_return_sequences": 2},
}
ways = pytest.mark.parametrize("way", ARGUMENTS)
modes = pytest.mark.parametrize("mode", MODES)
MODES_OF_FAMILIES = [
    pytest.param(mode, family, marks=[pytest.mark.slow] if family != "llama" and "sample" in mode else [])
    for mode in MODES
    for family in BASES
]
families = pytest.mark.parametrize("family", BASES)


def assert_form(output, rows: int, cached: bool, attentions: bool = False) -> None:
    """A dict output has what was asked for, in the shapes of transformers; `rows` counts beams."""
    new, heads, layers = output.sequences.shape[1] - LENGTH, 4, 2
    for values in (output.scores, output.logits):
        assert [tuple(x.shape) for x in values] == [(rows, 99)] * new
    widths = [LENGTH + step if step == 0 or not cached else 1 for step in range(new)]
    shapes = [[tuple(x.shape) for x in states] for states in output.hidden_states]
    assert shapes == [[(rows, width, WIDTH)] * (layers + 1) for width in widths]
    if attentions:
        shapes = [[tuple(x.shape) for x in weights] for weights in output.attentions]
        keys = range(LENGTH, LENGTH + new)
        assert shapes == [[(rows, heads, w, key)] * layers for w, key in zip(widths, keys, strict=True)]
    if not cached:
        assert output.past_key_values is None
        return
    cache, length = output.past_key_values, output.sequences.shape[1] - 1
    assert len(cache.layers) == layers and cache.get_seq_length() == length
    for layer in cache.layers:
        assert layer.keys.shape == layer.values.shape
        assert layer.keys.shape[:2] == (rows, 2) and layer.keys.shape[2] <= length and layer.keys.shape[3] == 8


class TestModes:
    @pytest.mark.parametrize(("mode", "family"), MODES_OF_FAMILIES)
    @ways
    def test_tokens_and_further_outputs(self, way, mode, family):
        asked = {**MODES[mode], **DICT, "output_logits": True, "output_hidden_states": True, "use_cache": True}
        output = run(way, prompts(), family=family, **asked)
        copies = MODES[mode].get("num_return_sequences", 1)
        beams = MODES[mode].get("num_beams", 1)
        assert output.sequences.shape == (2 * copies, LENGTH + NEW)
        assert isinstance(output, GenerateBeamDecoderOnlyOutput if beams > 1 else GenerateDecoderOnlyOutput)
        assert_form(output, 2 * max(copies, beams), cached=True)
        if way == "stored":
            assert_budget_kept(model_of(way, family), output.actions, [LENGTH] * 2 * copies, **targets())
        else:
            assert_like(way, output, run_base(prompts(), family=family, **asked))
        ids = run(way, prompts(), family=family, **MODES[mode])
        assert torch.equal(ids, output.sequences)

    @modes
    def test_attention_weights_and_no_cache_without_a_budget(self, mode):
        model = model_of("no budget", attn_implementation="eager")
        asked = {**MODES[mode], **DICT, "output_logits": True, "output_hidden_states": True, "output_attentions": True}
        rows = 2 * max(MODES[mode].get("num_return_sequences", 1), MODES[mode].get("num_beams", 1))
        for use_cache in (True, False):
            output = run("no budget", prompts(), model=model, use_cache=use_cache, **asked)
            assert_form(output, rows, use_cache, attentions=True)
            torch.manual_seed(5)
            assert_like("no budget", output, model.base.generate(prompts(), use_cache=use_cache, **asked))

    @ways
    @pytest.mark.parametrize("attention", [pytest.param("eager", marks=pytest.mark.slow), "sdpa"])
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, way, attention, dtype):
        model = model_of(way, dtype=dtype, attn_implementation=attention)
        output = run(way, prompts(), model=model, **RUN, **DICT)
        assert output.sequences.shape == (2, LENGTH + NEW)
        if way == "no budget":
            assert_like(way, output, model.base.generate(prompts(), **RUN, **DICT))
        elif way == "fast":
            expected = model.base.generate(prompts(), **RUN, **DICT)
            torch.testing.assert_close(output.scores[0], expected.scores[0], atol=0.2, rtol=0.05)

    @ways
    def test_policy_training_and_gradients_change_nothing(self, way):
        model = model_of(way)
        expected = run(way, prompts(), **RUN)
        try:
            model.train()
            with torch.enable_grad():
                assert torch.equal(run(way, prompts(), **RUN), expected)
        finally:
            model.eval()
        with torch.inference_mode():
            assert torch.equal(run(way, prompts(), **RUN), expected)

    @ways
    def test_scores_of_transitions(self, way):
        for mode in ({}, BEAMS):
            output = run(way, prompts(), **RUN, **DICT, **mode)
            beams = getattr(output, "beam_indices", None)
            scores = model_of(way).compute_transition_scores(output.sequences, output.scores, beams, True)
            assert scores.shape == (2, NEW) and scores.le(0).all()
            if beams is not None:
                torch.testing.assert_close(scores.sum(1) / NEW**2.0, output.sequences_scores)

    @ways
    def test_a_saved_policy_searches_with_beams(self, way, tmp_path):
        model = model_of(way)
        model.save_pretrained(tmp_path)
        again = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
        again.policy.double()
        assert torch.equal(run(way, prompts(), model=again, **RUN, **BEAMS), run(way, prompts(), **RUN, **BEAMS))


def targets() -> dict[str, float]:
    return {axis: STORED[axis] for axis in ("token_keep", "mlp_keep", "bits")}


class TestInputs:
    @ways
    def test_no_prompt(self, way):
        output = run(way, **RUN, remove_invalid_values=True)
        assert output.shape == (1, 1 + NEW) and output[0, 0] == 1
        assert way == "stored" or torch.equal(output, run_base(**RUN))

    @ways
    def test_ids_by_name_or_twice(self, way):
        expected = run(way, prompts(), **RUN)
        assert torch.equal(run(way, input_ids=prompts(), **RUN), expected)
        with pytest.raises(ValueError, match="passed alongside input_ids"):
            run(way, prompts(), input_ids=prompts(), **RUN)

    @families
    @ways
    def test_left_padding(self, way, family):
        row = prompts(1)[0]
        padded = run(way, **left_padded([row, row[:13]]), family=family, **RUN, **DICT)
        for index, alone in enumerate((row, row[:13])):
            own = run(way, alone[None], family=family, **RUN, **DICT)
            assert torch.equal(padded.sequences[index, LENGTH:], own.sequences[0, len(alone) :])
            for several, one in zip(padded.scores, own.scores, strict=True):
                torch.testing.assert_close(several[index], one[0], atol=1e-4, rtol=1e-3)

    @ways
    def test_masks_and_positions_that_say_nothing_new(self, way):
        expected = run(way, prompts(), **RUN)
        for further in (
            {"attention_mask": torch.ones(2, LENGTH, dtype=torch.long)},
            {"attention_mask": torch.ones(2, LENGTH, dtype=torch.bool)},
            {"position_ids": torch.arange(LENGTH).expand(2, -1)},
            {"logits_to_keep": 0},
            {"cache_implementation": "dynamic"},
            {"disable_compile": True},
        ):
            assert torch.equal(run(way, prompts(), **RUN, **further), expected), further

    @pytest.mark.parametrize("beams", [{}, BEAMS], ids=["greedy", "beams"])
    @ways
    def test_embeddings(self, way, beams):
        embeds = model_of(way).get_input_embeddings()(prompts())
        expected = run(way, prompts(), **RUN, **DICT, **beams)
        both = run(way, prompts(), inputs_embeds=embeds, **RUN, **DICT, **beams)
        assert_like(way, both, expected)
        alone = run(way, inputs_embeds=embeds, **RUN, **DICT, **beams)
        assert torch.equal(alone.sequences, expected.sequences[:, LENGTH:])
        others = run(way, prompts(), inputs_embeds=torch.rand_like(embeds), **RUN, **DICT, **beams)
        assert not any(torch.allclose(x, y) for x, y in zip(others.scores, expected.scores, strict=True))

    @ways
    def test_misspelt_arguments(self, way):
        with pytest.raises(ValueError, match=r"not used by the model: \['attention_mas'\]"):
            run(way, prompts(), attention_mas=torch.ones(2, LENGTH), **RUN)

    @ways
    def test_lengths(self, way):
        assert run(way, prompts(), max_length=LENGTH + 2, do_sample=False).shape == (2, LENGTH + 2)
        with pytest.raises(ValueError, match="`max_length` is set to 20"):
            run(way, prompts(), max_length=LENGTH)
        with pytest.raises(ValueError, match="`max_new_tokens` must be greater than 0"):
            run(way, prompts(), max_new_tokens=0)


class TestContinuing:
    """Three tokens and one more are four tokens."""

    @families
    @ways
    def test_from_ids(self, way, family):
        whole = run(way, prompts(), family=family, **RUN, **DICT, pad_token_id=0)
        first = run(way, prompts(), family=family, **{**RUN, "max_new_tokens": 3}, **DICT, pad_token_id=0)
        mask, cache = torch.ones_like(first.sequences), first.past_key_values
        last = {**RUN, "max_new_tokens": 1, "attention_mask": mask, "past_key_values": cache, "pad_token_id": 0}
        second = run(way, first.sequences, family=family, **last, **DICT)
        assert torch.equal(second.sequences, whole.sequences)
        self.assert_same_cache(second, whole)

    @ways
    def test_from_embeddings(self, way):
        embed = model_of(way).get_input_embeddings()
        whole = run(way, inputs_embeds=embed(prompts()), **RUN, **DICT)
        first = run(way, inputs_embeds=embed(prompts()), **{**RUN, "max_new_tokens": 3}, **DICT)
        text = torch.cat([embed(prompts()), embed(first.sequences)], dim=1)
        last = {**RUN, "max_new_tokens": 1, "past_key_values": first.past_key_values}
        second = run(way, inputs_embeds=text, **last, **DICT)
        assert torch.equal(torch.cat([first.sequences, second.sequences], dim=1), whole.sequences)
        self.assert_same_cache(second, whole)

    def assert_same_cache(self, second, whole) -> None:
        for ours, theirs in zip(second.past_key_values.layers, whole.past_key_values.layers, strict=True):
            for name in ("keys", "values"):
                x, y = (getattr(layer, name) for layer in (ours, theirs))
                width = min(x.shape[2], y.shape[2])
                torch.testing.assert_close(x[:, :, -width:], y[:, :, -width:], atol=1e-4, rtol=1e-3)


TEXT: dict[str, dict[str, Any]] = {
    "forced end": {"forced_eos_token_id": 5},
    "forced begin": {"forced_bos_token_id": 6},
    "suppressed": {"suppress_tokens": [7, 8], "begin_suppress_tokens": [9]},
    "bias": {"sequence_bias": [[[9], 2.0]]},
    "several ends": {"eos_token_id": [2, 17], "min_new_tokens": 2, "exponential_decay_length_penalty": (2, 1.1)},
    "ends that are no ids": {"eos_token_id": -1, "pad_token_id": -1},
    "ngrams": {"no_repeat_ngram_size": 2, "encoder_repetition_penalty": 1.1},
    "watermark": {"watermarking_config": WatermarkingConfig()},
    "warpers": {**WARPERS, "min_p": 0.01, "typical_p": 0.9, "epsilon_cutoff": 1e-4, "renormalize_logits": True},
    "time": {"max_time": 600.0},
    "criteria": {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(max_length=LENGTH + 2)])},
    "a config": {"generation_config": GenerationConfig(max_new_tokens=3, num_beams=2, num_return_sequences=2)},
    "prompt in chunks": {"prefill_chunk_size": 7},
}


class TestOptionsOfText:
    @pytest.mark.parametrize("name", TEXT)
    @ways
    def test_processors_and_criteria(self, way, name):
        prompt = prompts(length=1) if name == "forced begin" else prompts()
        asked = TEXT[name] if name == "a config" else {**RUN, **TEXT[name]}
        output, expected = run(way, prompt, **asked), run_base(prompt, **asked)
        assert output.shape == expected.shape
        if way != "stored":
            assert torch.equal(output, expected)
        new = output[:, prompt.shape[1] :]
        assert name != "forced end" or new[:, -1].tolist() == [5, 5]
        assert name != "forced begin" or new[:, 0].tolist() == [6, 6]
        assert name != "suppressed" or not torch.isin(new, torch.tensor([7, 8])).any()


class TestClass:
    def test_it_generates_by_transformers_own_mixin(self):
        assert GenerationMixin in SOLForCausalLM.__bases__

    @families
    def test_a_forward_returns_the_cache_of_the_base(self, family):
        model = model_of("stored", family)
        output, expected = (m(prompts(), use_cache=True) for m in (model, model.base))
        assert torch.equal(output.logits, expected.logits)
        for ours, theirs in zip(output.past_key_values.layers, expected.past_key_values.layers, strict=True):
            assert torch.equal(ours.keys, theirs.keys) and type(ours) is type(theirs)

    def test_a_policy_under_a_stored_budget_may_draft_for_its_base(self):
        model = model_of("stored")
        output = model.base.generate(prompts(1), **RUN, assistant_model=model)
        assert torch.equal(output, run_base(prompts(1), **RUN))
