# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`generate` in all modes of transformers: the base's tokens if dense, and budgets that are kept."""

import copy
import pickle
import threading

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    PreTrainedTokenizerFast,
    StoppingCriteria,
    TemperatureLogitsWarper,
    TextIteratorStreamer,
    TopKLogitsWarper,
    pipeline,
)

from sol_hf import (
    AxisBiasProcessor,
    Budget,
    Controller,
    ScheduleController,
    SOLForCausalLM,
    SOLGenerateBeamDecoderOnlyOutput,
    SOLGenerateDecoderOnlyOutput,
)
from sol_hf.decoding.options import resolve_options
from sol_hf.decoding.session import DecodingSession
from sol_hf.decoding.setup import controls_for
from support.bases import tiny_base
from support.cases import (
    DENSE_BUDGETS,
    HALF,
    LEVELS,
    assert_budget_kept,
    constant_schedule,
    control,
    left_padded,
    mixed_schedule,
    prompts,
    sol_model,
)


STEPS = 14
GREEDY = {"max_new_tokens": STEPS, "do_sample": False}
DICT = {"return_dict_in_generate": True}
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
WORDS = {f"w{index:02d}": index for index in range(98)} | {"abcdef": 98}
TEMPLATE = "{% for m in messages %}w03 {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}w04{% endif %}"
SHORTEST = [prompts(1, length, seed=length)[0] for length in (17, 11)]

MODES: dict[str, dict] = {
    "greedy": GREEDY,
    "sampling": {"do_sample": True, "temperature": 1.3, "top_k": 20, "max_new_tokens": STEPS},
    "beams": {"num_beams": 3, **GREEDY},
    "beam sampling": {"num_beams": 3, "do_sample": True, "max_new_tokens": STEPS},
    "returned beams": {"num_beams": 3, "num_return_sequences": 2, **GREEDY},
    "returned samples": {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": STEPS},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2, **GREEDY},
    "max_length": {"max_length": 27, "do_sample": False},
}
modes = pytest.mark.parametrize("mode", MODES)


@pytest.fixture(scope="module")
def model() -> SOLForCausalLM:
    return sol_model()


@pytest.fixture
def own_model() -> SOLForCausalLM:
    """A model that a test may change."""
    return sol_model()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(WordLevel(WORDS, unk_token="w02"))
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="w00", unk_token="w02", padding_side="left"
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def seeded(function, *args, **kwargs):
    torch.manual_seed(11)
    return function(*args, **kwargs)


def both(model: SOLForCausalLM, *args, **kwargs):
    """Output of the base and of the dense model, from the same seed."""
    return [seeded(m.generate, *args, **kwargs) for m in (model.base, model)]


def values_of(model: SOLForCausalLM, actions: torch.Tensor) -> torch.Tensor:
    return model.action_space.values[actions.clamp(min=0)]


def assert_realised(model: SOLForCausalLM, output) -> None:
    """`realised` are the means over the steps that `actions` lists, all of them controllable."""
    has_step = (output.actions >= 0)[..., None]
    means = (values_of(model, output.actions) * has_step).sum(1) / has_step.sum(1)
    torch.testing.assert_close(output.realised, means)


def logprobs_of(output, prompt_length: int) -> torch.Tensor:
    """Log-probabilities `(rows, steps)` of the new tokens of a greedy output with logits."""
    logits = torch.stack(output.logits, dim=1).log_softmax(dim=-1)
    return logits.gather(-1, output.sequences[:, prompt_length:, None]).squeeze(-1)


def replay(model: SOLForCausalLM, output, prompt_length: int, **options):
    """Teacher-forced pass over generated sequences under the actions that generated them."""
    controller = ScheduleController(output.actions.clamp(min=0).T)
    return model.score(output.sequences, context_length=prompt_length - 1, controller=controller, **options)


class TestDense:
    @pytest.mark.parametrize("budget", DENSE_BUDGETS)
    @modes
    def test_same_tokens(self, model, mode, budget):
        expected = seeded(model.base.generate, prompts(), **MODES[mode])
        output = seeded(model.generate, prompts(), **MODES[mode], **DENSE_BUDGETS[budget])
        assert torch.equal(output, expected)

    @modes
    def test_dict_of_a_dense_budget(self, model, mode):
        expected = seeded(model.base.generate, prompts(), **MODES[mode], **DICT)
        output = seeded(model.generate, prompts(), **MODES[mode], **DICT, **DENSE_BUDGETS["dense"])
        assert torch.equal(output.sequences, expected.sequences)
        assert output.actions.shape == (len(expected.sequences), expected.sequences.shape[1] - 20)
        assert set(output.actions.unique().tolist()) <= {-1, model.action_space.dense_id}
        assert output.realised.tolist() == [[1.0, 1.0, 16.0]] * len(expected.sequences)

    @modes
    def test_left_padded(self, model, mode):
        expected, output = both(model, **left_padded(SHORTEST), **MODES[mode])
        assert torch.equal(output, expected)

    def test_end_tokens(self, model):
        free = model.base.generate(prompts(), **GREEDY)
        end = [free[0, 24].item(), free[1, 27].item()]
        expected, output = both(model, prompts(), eos_token_id=end, **GREEDY)
        assert torch.equal(output, expected)
        assert output.shape[1] < free.shape[1]

    def test_without_a_prompt_begins_with_bos(self, model):
        expected, output = both(model, **GREEDY)
        assert torch.equal(output, expected)

    def test_prompt_lookup(self, model):
        expected, output = both(model, prompts(1), prompt_lookup_num_tokens=3, **GREEDY)
        assert torch.equal(output, expected)

    def test_assisted(self, model):
        assistant = tiny_base("llama", torch.float64)
        expected, output = both(model, prompts(1), assistant_model=assistant, **GREEDY)
        assert torch.equal(output, expected)

    @pytest.mark.parametrize("mode", ["greedy", "beams"])
    def test_transition_scores(self, model, mode):
        scores = []
        for output, owner in zip(
            both(model, prompts(), output_scores=True, **MODES[mode], **DICT), (model.base, model), strict=True
        ):
            beams = getattr(output, "beam_indices", None)
            scores.append(owner.compute_transition_scores(output.sequences, output.scores, beams))
        assert torch.equal(*scores)

    @pytest.mark.parametrize("drafts", ["prompt_lookup_num_tokens", "assistant_model"])
    def test_every_token_of_an_assisted_generation_has_an_action(self, model, drafts):
        value = 3 if drafts == "prompt_lookup_num_tokens" else tiny_base("llama", torch.float64)
        output = model.generate(prompts(1), **GREEDY, **DICT, **DENSE_BUDGETS["dense"], **{drafts: value})
        assert output.sequences.shape == (1, 20 + STEPS)
        assert output.actions.tolist() == [[model.action_space.dense_id] * STEPS]

    @pytest.mark.parametrize("options", [{}, HALF])
    def test_default_length_ends_with_the_positions_of_the_base(self, options):
        model, ids = sol_model(max_position_embeddings=32), prompts(length=25)
        assert model.base.generate(ids).shape == (2, 32)
        assert model.generate(ids, **options).shape == (2, 32)

    def test_inputs_embeds(self, model):
        embeds = model.base.get_input_embeddings()(prompts())
        expected, output = both(model, inputs_embeds=embeds, **GREEDY)
        assert torch.equal(output, expected)


class TestModesUnderBudget:
    @modes
    def test_budget_is_kept(self, model, mode):
        output = seeded(model.generate, prompts(), **MODES[mode], **DICT, **HALF)
        rows, length = output.sequences.shape
        assert rows == 2 * MODES[mode].get("num_return_sequences", 1)
        assert output.actions.shape == (rows, length - 20) and output.realised.shape == (rows, 3)
        assert output.actions.unique().numel() > 1
        assert_budget_kept(model, output.actions, [20] * rows, **HALF)
        assert_realised(model, output)
        kind = SOLGenerateBeamDecoderOnlyOutput if "num_beams" in MODES[mode] else SOLGenerateDecoderOnlyOutput
        assert type(output) is kind
        assert torch.equal(output.sequences, seeded(model.generate, prompts(), **MODES[mode], **HALF))

    @modes
    def test_left_padded(self, model, mode):
        output = seeded(model.generate, **left_padded(SHORTEST), **MODES[mode], **DICT, **HALF)
        copies = MODES[mode].get("num_return_sequences", 1)
        assert_budget_kept(model, output.actions, [17] * copies + [11] * copies, **HALF)
        assert_realised(model, output)

    def test_no_action_after_the_end_of_a_row(self, model):
        free = model.generate(prompts(), **GREEDY, **DICT, **HALF)
        new = free.sequences[:, 20:]
        end = next(token for token in new[0, 2:].tolist() if token not in new[1])
        length = new[0].tolist().index(end) + 1
        output = model.generate(prompts(), **GREEDY, **DICT, **HALF, eos_token_id=end)
        assert torch.equal(output.actions[1], free.actions[1])
        assert torch.equal(output.actions[0, :length], free.actions[0, :length])
        assert output.actions[0, length:].eq(-1).all() and length < STEPS
        torch.testing.assert_close(output.realised[0], values_of(model, free.actions[0, :length]).mean(0))

    def test_no_action_after_the_end_by_a_stop_string(self, model, tokenizer):
        free = model.generate(prompts(), **GREEDY, **DICT, **HALF)
        new = free.sequences[:, 20:]
        end = next(token for token in new[0, 2:].tolist() if token not in new[1])
        length = new[0].tolist().index(end) + 1
        stop = {"stop_strings": [tokenizer.convert_ids_to_tokens(end)], "tokenizer": tokenizer, "eos_token_id": 1}
        assert not (new == 1).any()
        output = model.generate(prompts(), **GREEDY, **DICT, **HALF, **stop)
        assert output.sequences[0, 20 + length :].eq(0).all() and length < STEPS
        assert output.actions[0, length:].eq(-1).all()

    @pytest.mark.parametrize("mode", ["beams", "returned beams", "beam sampling"])
    def test_actions_of_beams_follow_beam_indices(self, model, mode):
        output = seeded(model.generate, prompts(), **MODES[mode], **DICT, **HALF)
        trace = output.past_key_values.trace
        for row, beams in enumerate(output.beam_indices.tolist()):
            assert [trace[step][0][beam].item() for step, beam in enumerate(beams)] == output.actions[row].tolist()
        assert output.beam_indices.unique().numel() > 2

    @pytest.mark.parametrize("mode", ["beams", "returned beams"])
    def test_replay_reproduces_the_scores_of_beams(self, model, mode):
        output = model.generate(prompts(), **MODES[mode], **DICT, **HALF, output_scores=True)
        replayed = replay(model, output, 20).logprobs.mean(dim=1)
        torch.testing.assert_close(output.sequences_scores, replayed, **CLOSE)

    def test_ended_beams_have_no_more_actions(self, model):
        free = model.generate(prompts(1), num_beams=3, **GREEDY, **DICT, **HALF)
        output = model.generate(
            prompts(1),
            num_beams=3,
            num_return_sequences=3,
            early_stopping=True,
            eos_token_id=free.sequences[0, 23:25].tolist(),
            **GREEDY,
            **DICT,
            **HALF,
        )
        lengths = (output.beam_indices >= 0).sum(dim=1)
        assert lengths.min() < lengths.max()
        for actions, length in zip(output.actions, lengths.tolist(), strict=True):
            assert actions[:length].ge(0).all() and actions[length:].eq(-1).all()

    @pytest.mark.parametrize("kv_refresh", [True, False])
    @pytest.mark.parametrize("mode", ["greedy", "sampling"])
    def test_replay_reproduces_the_log_probs(self, model, mode, kv_refresh):
        options = {"output_logits": True, "kv_refresh": kv_refresh}
        output = seeded(model.generate, prompts(), **MODES[mode], **DICT, **HALF, **options)
        replayed = replay(model, output, 20, kv_refresh=kv_refresh)
        torch.testing.assert_close(logprobs_of(output, 20), replayed.logprobs, **CLOSE)
        assert torch.equal(replayed.actions, output.actions)
        torch.testing.assert_close(replayed.realised, output.realised)

    def test_sampling_draws_the_same_tokens_from_the_same_seed(self, model):
        first, again = (seeded(model.generate, prompts(), **MODES["sampling"], **HALF) for _ in range(2))
        torch.manual_seed(12)
        assert torch.equal(first, again)
        assert not torch.equal(first, model.generate(prompts(), **MODES["sampling"], **HALF))

    @pytest.mark.parametrize("drafts", ["prompt_lookup_num_tokens", "assistant_model"])
    def test_assisted_decoding_is_refused(self, model, drafts):
        value = 3 if drafts == "prompt_lookup_num_tokens" else tiny_base("llama", torch.float64)
        with pytest.raises(ValueError, match="`assisted_generation` cannot run under a budget"):
            model.generate(prompts(1), **GREEDY, **HALF, **{drafts: value})


OPTIONS = {"none": {}, "half": HALF, "lossless": {"lossless": 3}}
options_ = pytest.mark.parametrize("options", OPTIONS)


class TestSurroundings:
    """Streamers, criteria, processors, pipelines: the base's result if dense or lossless; and under a budget."""

    def reference(self, model, options, *args, **kwargs) -> torch.Tensor:
        if options == "half":
            return model.generate(*args, **kwargs, **HALF)
        return model.base.generate(*args, **kwargs)

    @options_
    def test_streamer(self, model, tokenizer, options):
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
        arguments = {"inputs": prompts(1), "streamer": streamer, **GREEDY, **OPTIONS[options]}
        thread = threading.Thread(target=model.generate, kwargs=arguments)
        thread.start()
        text = "".join(streamer)
        thread.join(timeout=60)
        expected = self.reference(model, options, prompts(1), **GREEDY)
        assert text.split() == tokenizer.convert_ids_to_tokens(expected[0, 20:])

    @options_
    def test_stop_strings(self, model, tokenizer, options):
        free = self.reference(model, options, prompts(1), **GREEDY)[0].tolist()
        stop = tokenizer.convert_ids_to_tokens(free[25])
        output = model.generate(prompts(1), stop_strings=[stop], tokenizer=tokenizer, **GREEDY, **OPTIONS[options])
        assert output[0].tolist() == free[: free.index(free[25], 20) + 1]

    @options_
    def test_own_stopping_criterion(self, model, options):
        class Length(StoppingCriteria):
            def __call__(self, input_ids, scores, **kwargs):
                return torch.full((len(input_ids),), input_ids.shape[1] >= 24)

        free = self.reference(model, options, prompts(), **GREEDY)
        output = model.generate(prompts(), stopping_criteria=[Length()], **GREEDY, **OPTIONS[options])
        assert torch.equal(output, free[:, :24])

    @options_
    def test_own_logits_processor(self, model, options):
        class Ban(LogitsProcessor):
            def __call__(self, input_ids, scores):
                return scores.index_fill(1, banned, float("-inf"))

        free = self.reference(model, options, prompts(), **GREEDY)
        banned = free[:, 20:].unique()
        output = model.generate(prompts(), logits_processor=[Ban()], **GREEDY, **OPTIONS[options])
        assert not torch.isin(output[:, 20:], banned).any()
        again = self.reference(model, options, prompts(), logits_processor=[Ban()], **GREEDY)
        assert torch.equal(output, again)

    @options_
    def test_pipeline(self, model, tokenizer, options):
        generate = pipeline("text-generation", model=model, tokenizer=tokenizer)
        text = tokenizer.decode(prompts(1)[0])
        arguments = {**GREEDY, "return_full_text": False, **OPTIONS[options]}
        expected = tokenizer.decode(
            self.reference(model, options, prompts(1), **GREEDY)[0, 20:], skip_special_tokens=True
        )
        assert generate(text, **arguments)[0]["generated_text"].split() == expected.split()

    @options_
    def test_chat_template(self, model, tokenizer, options):
        messages = [{"role": "user", "content": tokenizer.decode(prompts(1)[0])}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        expected = torch.cat([torch.tensor([[3]]), prompts(1), torch.tensor([[4]])], dim=1)
        assert torch.equal(inputs["input_ids"], expected)
        allowed = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        output = model.generate(**allowed, **GREEDY, **OPTIONS[options])
        assert torch.equal(output, self.reference(model, options, expected, **GREEDY))

    def test_batched_text_under_a_budget(self, model, tokenizer):
        texts = [tokenizer.decode(row) for row in SHORTEST]
        batch = tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        output = model.generate(**batch, **GREEDY, **DICT, **HALF)
        for index, row in enumerate(SHORTEST):
            alone = model.generate(row[None], **GREEDY, **DICT, **HALF)
            assert torch.equal(output.actions[index], alone.actions[0])
            assert torch.equal(output.sequences[index, 17:], alone.sequences[0, len(row) :])

    def test_inputs_embeds_under_a_budget(self, model):
        embeds = model.base.get_input_embeddings()(prompts())
        expected = model.generate(prompts(), **GREEDY, **DICT, **HALF)
        output = model.generate(inputs_embeds=embeds, **GREEDY, **DICT, **HALF)
        assert torch.equal(output.sequences, expected.sequences[:, 20:])
        assert torch.equal(output.actions, expected.actions)
        both_given = model.generate(prompts(), inputs_embeds=embeds, **GREEDY, **DICT, **HALF)
        assert torch.equal(both_given.sequences, expected.sequences)
        assert torch.equal(both_given.actions, expected.actions)


def continued(model: SOLForCausalLM, tokens: torch.Tensor, cache, **options):
    """Generate after `tokens`, the first of which may be in the cache."""
    defaults = {"attention_mask": torch.ones_like(tokens), "output_logits": True, **GREEDY, **DICT, **HALF}
    return model.generate(tokens, past_key_values=cache, **{**defaults, **options})


def assert_same(first, second, rows=slice(None)) -> None:
    """Two outputs agree; `rows` are those of `second` that stand in `first`."""
    assert torch.equal(first.sequences, second.sequences[rows])
    assert torch.equal(first.actions, second.actions[rows])
    torch.testing.assert_close(torch.stack(first.logits, 1), torch.stack(second.logits, 1)[rows], **CLOSE)


CACHED = pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text"])


class TestTurns:
    """Several calls on one cache, on full, sliding and mixed layers."""

    @CACHED
    @pytest.mark.parametrize("first", [3, 6, 9])
    def test_second_turn_equals_a_conversation_with_a_fresh_prefix(self, family, first):
        model = sol_model(family)
        turn = continued(model, prompts(), model.new_cache(), max_new_tokens=first)
        conversation = torch.cat([turn.sequences, prompts(length=5, seed=8)], dim=1)
        assert_same(continued(model, conversation, turn.past_key_values), continued(model, conversation, None))

    def test_second_turn_of_a_left_padded_batch(self, model):
        batch = left_padded(SHORTEST)
        turn = model.generate(**batch, max_new_tokens=5, **DICT, **HALF)
        conversation = torch.cat([turn.sequences, prompts(length=4, seed=8)], dim=1)
        mask = torch.cat([batch["attention_mask"], torch.ones(2, 9, dtype=torch.long)], dim=1)
        again = continued(model, conversation, turn.past_key_values, attention_mask=mask)
        assert_same(again, continued(model, conversation, None, attention_mask=mask))

    def test_second_turn_with_new_tokens_only(self, model):
        turns = [continued(model, prompts(), model.new_cache(), max_new_tokens=5) for _ in range(2)]
        conversation = torch.cat([turns[0].sequences, prompts(length=4, seed=8)], dim=1)
        expected = continued(model, conversation, turns[0].past_key_values)
        new, mask = conversation[:, 24:], torch.ones_like(conversation)
        output = continued(model, new, turns[1].past_key_values, attention_mask=mask)
        assert torch.equal(output.actions, expected.actions)
        assert torch.equal(output.sequences[:, new.shape[1] :], expected.sequences[:, conversation.shape[1] :])

    def test_without_refresh_the_second_turn_sees_what_the_first_one_wrote(self, model):
        turn = continued(model, prompts(), None, max_new_tokens=5, kv_refresh=False)
        conversation = torch.cat([turn.sequences, prompts(length=4, seed=8)], dim=1)
        kept = continued(model, conversation, turn.past_key_values, kv_refresh=False)
        fresh = continued(model, conversation, None, kv_refresh=False)
        assert (kept.logits[0] - fresh.logits[0]).abs().max() > 1e-3

    def test_one_token_a_call_keeps_the_budget(self, model):
        output, actions = continued(model, prompts(), None, max_new_tokens=1), []
        for _ in range(11):
            actions.append(output.actions)
            output = continued(model, output.sequences, output.past_key_values, max_new_tokens=1)
        actions.append(output.actions)
        assert_budget_kept(model, torch.cat(actions, dim=1), [20, 20], **HALF)

    @CACHED
    @pytest.mark.parametrize("first", [2, 6, 8])
    def test_stopping_and_going_on_equals_never_stopping(self, family, first):
        model = sol_model(family)
        whole = continued(model, prompts(), None)
        part = continued(model, prompts(), None, max_new_tokens=first)
        rest = continued(model, part.sequences, part.past_key_values, max_new_tokens=STEPS - first)
        assert torch.equal(rest.sequences, whole.sequences)
        assert torch.equal(torch.cat([part.actions, rest.actions], dim=1), whole.actions)

    @CACHED
    def test_dense_turn_after_a_sparse_one(self, family):
        model = sol_model(family)
        turn = continued(model, prompts(), None, max_new_tokens=4)
        conversation = torch.cat([turn.sequences, prompts(length=3, seed=8)], dim=1)
        settings = {"attention_mask": torch.ones_like(conversation), **GREEDY}
        output = model.generate(conversation, past_key_values=turn.past_key_values, **settings)
        assert torch.equal(output, model.base.generate(conversation, **settings))

    @CACHED
    @pytest.mark.parametrize(("first", "back"), [(5, 2), (5, 4), (9, 1), (12, 3)])
    def test_cropped_tokens_were_never_generated(self, family, first, back):
        model = sol_model(family)
        whole = continued(model, prompts(), None, max_new_tokens=first)
        whole.past_key_values.crop(-back)
        less = continued(model, prompts(), None, max_new_tokens=first - back)
        assert torch.equal(less.sequences, whole.sequences[:, : 20 + first - back])
        after_crop = continued(model, less.sequences, whole.past_key_values)
        assert_same(after_crop, continued(model, less.sequences, less.past_key_values))

    @CACHED
    def test_cropping_one_by_one_equals_cropping_at_once(self, family):
        model = sol_model(family)
        outputs = [continued(model, prompts(), None, max_new_tokens=5) for _ in range(2)]
        outputs[0].past_key_values.crop(-3)
        for _ in range(3):
            outputs[1].past_key_values.crop(-1)
        tokens = outputs[0].sequences[:, :22]
        assert_same(*(continued(model, tokens, output.past_key_values) for output in outputs))

    def test_crop_over_the_border_of_two_calls(self, model):
        part = continued(model, prompts(), None, max_new_tokens=3)
        rest = continued(model, part.sequences, part.past_key_values, max_new_tokens=2)
        rest.past_key_values.crop(-3)
        less = continued(model, prompts(), None, max_new_tokens=2)
        assert rest.past_key_values.get_seq_length() == less.past_key_values.get_seq_length() == 21
        assert_same(
            continued(model, less.sequences, rest.past_key_values),
            continued(model, less.sequences, less.past_key_values),
        )

    def test_crop_beyond_the_episode_needs_two_tokens(self, model):
        turn = continued(model, prompts(), None, max_new_tokens=4)
        turn.past_key_values.crop(-9)
        with pytest.raises(ValueError, match="two tokens or more"):
            continued(model, prompts()[:, :15], turn.past_key_values)
        turn.past_key_values.crop(-1)
        output = continued(model, prompts()[:, :15], turn.past_key_values)
        assert_same(output, continued(model, prompts()[:, :15], None))


class TestRowsOfTheCache:
    @pytest.fixture
    def part(self, model):
        """Stopped in the middle of the second episode, `(output, going on with it)`."""
        outputs = [continued(model, prompts(), None, max_new_tokens=9) for _ in range(2)]
        return outputs[0], continued(model, outputs[1].sequences, outputs[1].past_key_values)

    def test_select(self, model, part):
        output, expected = part
        output.past_key_values.batch_select_indices(torch.tensor([1]))
        assert_same(continued(model, output.sequences[1:], output.past_key_values), expected, rows=[1])

    def test_repeat(self, model, part):
        output, expected = part
        output.past_key_values.batch_repeat_interleave(2)
        tokens = output.sequences.repeat_interleave(2, dim=0)
        assert_same(continued(model, tokens, output.past_key_values), expected, rows=[0, 0, 1, 1])

    def test_reorder(self, model, part):
        output, expected = part
        output.past_key_values.reorder_cache(torch.tensor([1, 0]))
        assert_same(continued(model, output.sequences.flip(0), output.past_key_values), expected, rows=[1, 0])

    def test_targets_follow_the_rows_into_forwards_by_hand(self, model):
        budget = Budget(token_keep=[0.2, 1.0], mlp_keep=[0.4, 1.0], bits=[3, 16])
        given = {"budget": budget, "budget_horizon": "episode"}  # the first row has to stay at its smallest levels
        options = resolve_options(given, None, model.generation_config)
        controls = controls_for(options, model.base, model.policy, model.config, 2)
        cache, tokens = model.new_cache(), prompts()[:, -1:]
        with DecodingSession(model.base, cache, controls).running():
            model(prompts(), past_key_values=cache)
            assert cache.trace[-1][0].tolist() == [0, model.action_space.dense_id]
            cache.reorder_cache(torch.tensor([1, 0]))
            model(tokens.flip(0), past_key_values=cache)
            assert cache.trace[-1][0].tolist() == [model.action_space.dense_id, 0]
            cache.batch_select_indices(torch.tensor([1]))
            model(tokens[:1], past_key_values=cache)
            assert cache.trace[-1][0].tolist() == [0]

    def test_a_forward_outside_of_a_call_goes_on_densely(self, model):
        """A cache holds state only: the budget of a call ends with the call."""
        output = model.generate(prompts(), **GREEDY, **DICT, **HALF)
        cache, steps = output.past_key_values, output.actions.shape[1]
        logits = model(output.sequences[:, -1:], past_key_values=cache).logits[:, -1]
        dense = model.base(output.sequences).logits[:, -1]
        torch.testing.assert_close(logits, dense, **CLOSE)
        assert len(cache.trace) == steps

    def test_a_cache_can_be_pickled_and_copied_between_calls(self, model):
        first = model.generate(prompts(), **GREEDY, **DICT, **HALF)
        copies = [copy.deepcopy(first.past_key_values), pickle.loads(pickle.dumps(first.past_key_values))]
        more = torch.cat([first.sequences, prompts(2, 3, seed=9)], dim=1)
        outputs = [
            model.generate(more, attention_mask=torch.ones_like(more), past_key_values=cache, **GREEDY, **HALF)
            for cache in (first.past_key_values, *copies)
        ]
        assert torch.equal(outputs[1], outputs[0]) and torch.equal(outputs[2], outputs[0])


class TestOptions:
    def test_budgets_of_rows(self, model):
        budget = {"token_keep": [0.3, 0.9], "mlp_keep": 0.6, "bits": [12, 4]}
        output = model.generate(prompts(), **GREEDY, **DICT, **budget)
        assert_budget_kept(model, output.actions, [20, 20], **budget)
        alone = model.generate(prompts()[1:], **GREEDY, **DICT, token_keep=0.9, mlp_keep=0.6, bits=4)
        assert torch.equal(alone.actions[0], output.actions[1])

    def test_budgets_of_rows_serve_all_their_beams(self, model):
        budget = {"token_keep": [0.3, 0.9], "mlp_keep": 0.6, "bits": [12, 4]}
        output = model.generate(prompts(), **MODES["returned beams"], **DICT, **budget)
        repeated = {k: [x for x in v for _ in range(2)] if isinstance(v, list) else v for k, v in budget.items()}
        assert_budget_kept(model, output.actions, [20] * 4, **repeated)

    def test_budget_object_equals_the_numbers(self, model):
        output = model.generate(prompts(), **GREEDY, **DICT, budget=Budget(**HALF))
        assert torch.equal(output.actions, model.generate(prompts(), **GREEDY, **DICT, **HALF).actions)

    def test_tensors_and_lists_are_budgets(self, model):
        lists = model.generate(prompts(), **GREEDY, **DICT, token_keep=[0.3, 0.9])
        tensor = model.generate(prompts(), **GREEDY, **DICT, token_keep=torch.tensor([0.3, 0.9]))
        assert torch.equal(lists.actions, tensor.actions)

    def test_an_axis_that_is_not_set_stays_dense(self, model):
        output = model.generate(prompts(), **GREEDY, **DICT, mlp_keep=0.5)
        assert output.realised[:, 0].eq(1.0).all() and output.realised[:, 2].eq(16.0).all()
        assert output.realised[:, 1].le(0.5 + 0.5 / STEPS).all()

    def test_stored_defaults(self, own_model, tmp_path):
        model = own_model
        model.policy.float()
        expected = model.generate(prompts(), **GREEDY, **DICT, **HALF, kv_refresh=False)
        for name, value in {**HALF, "kv_refresh": False}.items():
            setattr(model.generation_config, name, value)
        assert torch.equal(model.generate(prompts(), **GREEDY, **DICT).actions, expected.actions)
        model.save_pretrained(tmp_path)
        loaded = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
        assert loaded.generation_config.token_keep == 0.5 and loaded.generation_config.kv_refresh is False
        assert torch.equal(loaded.generate(prompts(), **GREEDY, **DICT).actions, expected.actions)
        scored = loaded.score(prompts(), context_length=15)
        assert torch.equal(scored.actions, model.score(prompts(), context_length=15, **HALF, kv_refresh=False).actions)
        assert scored.actions.ne(model.action_space.dense_id).any()
        dense = loaded.generate(prompts(), **GREEDY, **DENSE_BUDGETS["dense"])
        assert torch.equal(dense, model.base.generate(prompts(), **GREEDY))

    def test_a_generation_config_of_the_call(self, model):
        config = GenerationConfig(**GREEDY, **DICT, **HALF, pad_token_id=0)
        expected = model.generate(prompts(), **GREEDY, **DICT, **HALF)
        assert torch.equal(model.generate(prompts(), generation_config=config).actions, expected.actions)

    def test_kv_refresh(self, model):
        ids, controller = prompts(), ScheduleController(constant_schedule(model, "cheapest", STEPS))
        outputs = {}
        for kv_refresh in (True, False):
            output = model.generate(ids, **GREEDY, **DICT, controller=controller, kv_refresh=kv_refresh)
            cache = model.new_cache()
            model(output.sequences[:, :-1], past_key_values=cache)
            dense, found = cache.layers[1].keys, output.past_key_values.layers[1].keys
            outputs[kv_refresh] = (dense - found).abs().amax(dim=(0, 1, 3))
        episodes = 20 - 1 + 2 * model.config.episode_length
        assert outputs[True][:episodes].max() < 1e-9 and outputs[True][episodes:].max() > 1e-3
        assert outputs[False][:19].max() < 1e-9 and outputs[False][19:].min() > 1e-3

    def test_a_dense_episode_is_not_refreshed(self, model):
        lengths = []
        handle = model.base.register_forward_pre_hook(
            lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
        )
        for action in ("dense", "cheapest"):
            controller = ScheduleController(constant_schedule(model, action, STEPS))
            model.generate(prompts(), **GREEDY, controller=controller)
        handle.remove()
        assert lengths == [19, *[1] * STEPS, 19, *[1] * 6, 6, *[1] * 6, 6, 1, 1]

    def test_soft_mode_trusts_the_controller(self, model):
        class Dearest(Controller):
            def __call__(self, observation):
                return observation.action_space.ratios.mean(dim=-1).expand(observation.rows, -1)

        soft = model.generate(prompts(), **GREEDY, **DICT, **HALF, controller=Dearest(), budget_mode="soft")
        hard = model.generate(prompts(), **GREEDY, **DICT, **HALF, controller=Dearest())
        assert soft.realised.tolist() == [[1.0, 1.0, 16.0]] * 2
        assert_budget_kept(model, hard.actions, [20, 20], **HALF)


class TestChoice:
    def test_sampled_actions(self, model):
        drawn = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            output = model.generate(prompts(), **GREEDY, **DICT, **HALF, do_sample_actions=True)
            assert_budget_kept(model, output.actions, [20, 20], **HALF)
            drawn.append(output.actions)
        assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])

    def test_a_low_temperature_takes_the_best(self, model):
        best = model.generate(prompts(), **GREEDY, **DICT, **HALF).actions
        cold, hot = (
            model.generate(prompts(), **GREEDY, **DICT, **HALF, do_sample_actions=True, action_temperature=t).actions
            for t in (1e-7, 1e3)
        )
        assert torch.equal(cold, best)
        assert not torch.equal(hot, best)

    def test_temperature_warper_of_transformers(self, model):
        draw = {"do_sample_actions": True, **GREEDY, **DICT, **HALF}
        warped = seeded(model.generate, prompts(), action_processors=[TemperatureLogitsWarper(0.02)], **draw)
        direct = seeded(model.generate, prompts(), action_temperature=0.02, **draw)
        assert torch.equal(warped.actions, direct.actions)
        assert not torch.equal(warped.actions, seeded(model.generate, prompts(), **draw).actions)

    def test_top_k_warper_of_transformers(self, model):
        free = {**GREEDY, **DICT, **HALF, "budget_mode": "soft"}
        best = model.generate(prompts(), **free)
        only = model.generate(prompts(), **free, do_sample_actions=True, action_processors=[TopKLogitsWarper(1)])
        assert torch.equal(only.actions, best.actions)

    @pytest.mark.parametrize("do_sample_actions", [False, True])
    def test_no_processor_undoes_a_hard_budget(self, do_sample_actions):
        dearest_first = {axis: levels[::-1] for axis, levels in LEVELS.items()}
        model = control(tiny_base("llama", torch.float64), **dearest_first)

        class Dearest(Controller):
            def __call__(self, observation):
                return observation.action_space.ratios.mean(dim=-1).expand(observation.rows, -1)

        output = model.generate(
            prompts(),
            **GREEDY,
            **DICT,
            **HALF,
            controller=Dearest(),
            action_processors=[TopKLogitsWarper(1)],
            do_sample_actions=do_sample_actions,
        )
        assert_budget_kept(model, output.actions, [20, 20], **HALF)

    @pytest.mark.parametrize("axis", LEVELS)
    def test_positive_bias_is_cheaper(self, model, axis):
        column = list(LEVELS).index(axis)
        soft = {**GREEDY, **DICT, "token_keep": 0.9, "mlp_keep": 0.9, "bits": 15, "budget_mode": "soft"}
        means = [
            model.generate(prompts(), **soft, action_processors=[AxisBiasProcessor(**{axis: bias})]).realised
            for bias in (-1e3, 0.0, 1e3)
        ]
        levels = LEVELS[axis]
        assert means[0][:, column].tolist() == pytest.approx([max(levels)] * 2)
        assert means[2][:, column].tolist() == pytest.approx([min(levels)] * 2)
        assert (means[1][:, column] <= means[0][:, column]).all() and (means[1] >= means[2])[:, column].all()

    def test_processors_see_the_actions_of_the_episode(self, model):
        seen = []

        class Watch(LogitsProcessor):
            def __call__(self, action_ids, scores):
                seen.append(action_ids.clone())
                return scores

        output = model.generate(prompts(), **GREEDY, **DICT, **HALF, action_processors=[Watch()])
        assert [ids.shape[1] for ids in seen] == [*range(6), *range(6), 0, 1]
        assert torch.equal(seen[11], output.actions[:, 6:11])

    def test_a_schedule_is_played(self, model):
        schedule = mixed_schedule(model, STEPS, rows=2)
        output = model.generate(prompts(), **GREEDY, **DICT, controller=ScheduleController(schedule))
        assert torch.equal(output.actions, schedule.T)
