# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Arguments along the tokens go with their tokens, images with the prompt, and outputs cover all tokens."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText, DynamicCache

from sol_hf import ScheduleController, SOLForCausalLM
from sol_hf.decoding.options import resolve_options
from sol_hf.decoding.session import DecodingSession
from sol_hf.decoding.setup import controls_for
from support.bases import SIZES, tiny_base
from support.cases import HALF, constant_schedule, control, left_padded, prompts, sol_model


DICT = {"return_dict_in_generate": True}
RUN = {"max_new_tokens": 9, "do_sample": False, **DICT, "output_logits": True}
CLOSE = {"atol": 1e-9, "rtol": 0}


def with_jump(rows: int, length: int, at: int = 10, by: int = 50) -> torch.Tensor:
    """Positions with a jump in the middle, other ones in every row."""
    jumps = by + torch.arange(rows)[:, None]
    return torch.arange(length).repeat(rows, 1) + jumps * (torch.arange(length) >= at)


def always(model: SOLForCausalLM, action: str, steps: int = 40) -> dict:
    return {"controller": ScheduleController(constant_schedule(model, action, steps))}


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
class TestOwnPositions:
    def test_in_forwards_over_a_cache(self, family):
        model = sol_model(family)
        positions = with_jump(2, 26)
        cache, expected = model.new_cache(), DynamicCache(config=model.base.config)
        for begin, end in ((0, 14), (14, 20), (20, 21), (21, 26)):
            part = {"input_ids": prompts(length=26)[:, begin:end], "position_ids": positions[:, begin:end]}
            ours = model(**part, past_key_values=cache).logits
            torch.testing.assert_close(ours, model.base(**part, past_key_values=expected).logits, **CLOSE)

    def test_positions_that_are_not_given_are_those_of_the_base(self, family):
        model = sol_model(family)
        cache, expected = model.new_cache(), DynamicCache(config=model.base.config)
        for arguments in ({"position_ids": with_jump(2, 20)}, {}):
            ours = model(prompts(), **arguments, past_key_values=cache).logits
            theirs = model.base(prompts(), **arguments, past_key_values=expected).logits
            torch.testing.assert_close(ours, theirs, **CLOSE)

    @pytest.mark.parametrize("action", ["dense", "token_keep", "bits"])
    def test_under_a_budget_and_through_refreshes(self, family, action):
        """Dense steps are the base's; after sparse steps a refresh gives the keys of a dense forward."""
        model, positions = sol_model(family), with_jump(2, 20)
        expected = model.base.generate(prompts(), position_ids=positions, **RUN)
        output = model.generate(prompts(), position_ids=positions, **RUN, **always(model, action))
        if action == "dense":
            assert torch.equal(output.sequences, expected.sequences)
            torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), **CLOSE)
        continued = torch.cat([positions, positions[:, -1:] + torch.arange(1, 10)], dim=1)
        dense = model.new_cache()
        model(output.sequences[:, :25], position_ids=continued[:, :25], past_key_values=dense)
        for layer, known in zip(output.past_key_values.layers, dense.layers, strict=True):
            kept = min(layer.keys.shape[2], known.keys.shape[2]) if family == "gemma3_text" else 25
            if layer.keys.shape[2] >= 25:
                torch.testing.assert_close(layer.keys[:, :, :kept], known.keys[:, :, :kept], **CLOSE)

    def test_over_two_turns(self, family):
        """The second turn processes the first one's unfinished episode again, at its own positions."""
        model, positions = sol_model(family), with_jump(2, 20)
        turn = model.generate(
            prompts(), position_ids=positions, **{**RUN, "max_new_tokens": 4}, **always(model, "bits")
        )
        text = torch.cat([turn.sequences, prompts(2, 3, seed=5)], dim=1)
        further = torch.cat([positions, positions[:, -1:] + torch.arange(1, 5), with_jump(2, 3, 0, 90)], dim=1)
        mask = torch.ones_like(text)
        output = model.generate(
            text,
            position_ids=further,
            attention_mask=mask,
            **RUN,
            **always(model, "dense"),
            past_key_values=turn.past_key_values,
        )
        expected = model.base.generate(text, position_ids=further, attention_mask=mask, **RUN)
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), **CLOSE)


def test_own_positions_of_padded_rows():
    """A row at its own positions is the same alone and left-padded."""
    model = sol_model()
    rows = [prompts(1, length, seed=length)[0] for length in (17, 11)]
    batch = left_padded(rows)
    own = [with_jump(1, len(row), at=6)[0] for row in rows]
    positions = torch.stack([torch.cat([x.new_zeros(17 - len(x)), x]) for x in own])
    together = model.generate(**batch, position_ids=positions, **RUN, **HALF)
    for index, row in enumerate(rows):
        alone = model.generate(row[None], position_ids=own[index][None], **RUN, **HALF)
        assert torch.equal(together.sequences[index, 17:], alone.sequences[0, len(row) :])
        assert torch.equal(together.actions[index], alone.actions[0])


def test_positions_of_steps_follow_their_rows():
    model, positions = sol_model(), with_jump(2, 20)
    turns = [
        model.generate(
            prompts(), position_ids=positions, **{**RUN, "max_new_tokens": 4}, **always(model, "token_keep")
        )
        for _ in range(2)
    ]
    turns[0].past_key_values.reorder_cache(torch.tensor([1, 0]))
    text = torch.cat([turns[1].sequences, prompts(2, 3, seed=5)], dim=1)
    mask = torch.ones_like(text)
    further = torch.cat([positions, positions[:, -1:] + torch.arange(1, 8)], dim=1)
    swapped, plain = (
        model.generate(
            text[rows],
            position_ids=further[rows],
            attention_mask=mask,
            **RUN,
            **HALF,
            past_key_values=turn.past_key_values,
        )
        for rows, turn in zip(([1, 0], [0, 1]), turns, strict=True)
    )
    assert torch.equal(swapped.sequences, plain.sequences[[1, 0]])


class TestTokenTypes:
    @pytest.mark.parametrize("types", ["zeros", "mixed"])
    def test_gpt2(self, types):
        model = sol_model("gpt2")
        ids = prompts()
        kinds = torch.zeros_like(ids) if types == "zeros" else (ids > 50).long()
        output = model.generate(ids, token_type_ids=kinds, **RUN, **always(model, "dense"))
        expected = model.base.generate(ids, token_type_ids=kinds, **RUN)
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), **CLOSE)
        sparse = model.generate(ids, token_type_ids=kinds, **RUN, **always(model, "token_keep"))
        last = kinds[:, -1:].expand(-1, 9)
        dense = model.new_cache()
        model(sparse.sequences[:, :25], token_type_ids=torch.cat([kinds, last], 1)[:, :25], past_key_values=dense)
        for layer, known in zip(sparse.past_key_values.layers, dense.layers, strict=True):
            torch.testing.assert_close(layer.keys[:, :, :25], known.keys, **CLOSE)
        assert types == "zeros" or not torch.equal(output.sequences, model.generate(ids, **RUN, **HALF).sequences)

    def test_a_turn_without_the_types_of_the_turn_before(self):
        model, ids = sol_model("gpt2"), prompts()
        turn = model.generate(
            ids, token_type_ids=(ids > 50).long(), **{**RUN, "max_new_tokens": 4}, **always(model, "bits")
        )
        text = torch.cat([turn.sequences, prompts(2, 3, seed=5)], dim=1)
        output = model.generate(
            text,
            attention_mask=torch.ones_like(text),
            **RUN,
            **always(model, "dense"),
            past_key_values=turn.past_key_values,
        )
        cache = DynamicCache(config=model.base.config)
        kinds = torch.cat([(ids > 50).long(), (ids[:, -1:] > 50).long().expand(-1, 4)], dim=1)
        model.base(text[:, :23], token_type_ids=kinds[:, :23], past_key_values=cache)
        logits = model.base(text[:, 23:], past_key_values=cache).logits[:, -1]
        torch.testing.assert_close(output.logits[0].double(), logits, atol=1e-6, rtol=0)


def vision_model(family: str) -> tuple[SOLForCausalLM, dict]:
    """A tiny vision-language base under a policy, and the arguments of a prompt with an image."""
    text = {k: v for k, v in SIZES.items() if k not in ("tie_word_embeddings",)}
    vision = dict(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        num_channels=3,
    )
    if family == "llava":
        config = AutoConfig.for_model(
            "llava",
            vision_config={"model_type": "clip_vision_model", "projection_dim": 16, **vision},
            text_config={"model_type": "llama", **text},
            image_token_id=98,
            vision_feature_layer=-1,
            image_seq_length=4,
        )
    else:
        config = AutoConfig.for_model(
            "gemma3",
            vision_config={"model_type": "siglip_vision_model", "vision_use_head": False, **vision},
            text_config={
                "model_type": "gemma3_text",
                "sliding_window": 16,
                "layer_types": ["sliding_attention", "full_attention"],
                **text,
            },
            image_token_id=98,
            boi_token_id=97,
            eoi_token_id=96,
            mm_tokens_per_image=4,
        )
    torch.manual_seed(7)
    base = AutoModelForImageTextToText.from_config(config, dtype=torch.float64).eval()
    base.generation_config.pad_token_id = 0
    with torch.no_grad():
        for parameter in base.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    ids = prompts(2, 20).clamp(max=95)
    ids[:, 3:7] = 98
    arguments = {"input_ids": ids, "pixel_values": torch.randn(2, 3, 16, 16, dtype=torch.float64)}
    if family == "gemma3":
        arguments["token_type_ids"] = (ids == 98).long()
    return control(base), arguments


WORDS = {**RUN, "suppress_tokens": [96, 97, 98]}
"""Settings under which no token of an image is generated."""


@pytest.mark.parametrize("family", ["llava", "gemma3"])
class TestImages:
    def test_dense_steps_are_the_base(self, family):
        model, arguments = vision_model(family)
        expected = model.base.generate(**arguments, **WORDS)
        output = model.generate(**arguments, **WORDS, **always(model, "dense"))
        assert torch.equal(output.sequences, expected.sequences)
        torch.testing.assert_close(torch.stack(output.logits), torch.stack(expected.logits), **CLOSE)
        assert torch.equal(model.generate(**arguments, **WORDS).sequences, expected.sequences)
        blind = {**arguments, "pixel_values": torch.zeros_like(arguments["pixel_values"])}
        blank = torch.stack(model.generate(**blind, **WORDS, **always(model, "dense")).logits)
        assert not torch.allclose(blank, torch.stack(expected.logits))

    def test_under_a_budget_with_a_refresh_and_a_second_turn(self, family):
        model, arguments = vision_model(family)
        turn = model.generate(**arguments, **WORDS, **HALF)
        assert turn.actions.ne(model.action_space.dense_id).any()
        text = torch.cat([turn.sequences, prompts(2, 3, seed=5).clamp(max=95)], dim=1)
        second = {"input_ids": text, "attention_mask": torch.ones_like(text)}
        if family == "gemma3":
            second["token_type_ids"] = (text == 98).long()
        output = model.generate(**second, **WORDS, **always(model, "dense"), past_key_values=turn.past_key_values)
        whole = {**arguments, **second}
        expected = model.base.generate(**whole, **WORDS)
        assert torch.equal(output.sequences, expected.sequences)


class TestOutputs:
    @pytest.mark.parametrize("padded", [False, True])
    @pytest.mark.parametrize("family", ["llama", "gpt2"])
    def test_hidden_states_cover_all_tokens(self, family, padded):
        model = sol_model(family)
        rows = [prompts(1, length, seed=length)[0] for length in (20, 13 if padded else 20)]
        batch, asked = left_padded(rows), {"output_hidden_states": True}
        expected = model.base.generate(**batch, **RUN, **asked)
        output = model.generate(**batch, **RUN, **asked, **always(model, "dense"))
        assert len(output.hidden_states) == len(expected.hidden_states) == 9
        for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
            assert [x.shape for x in ours] == [x.shape for x in theirs]
            for layer, known in zip(ours, theirs, strict=True):
                real = batch["attention_mask"].bool() if layer.shape[1] == 20 else torch.ones(2, 1, dtype=torch.bool)
                torch.testing.assert_close(layer[real], known[real], **CLOSE)

    def test_hidden_states_under_a_budget(self):
        model = sol_model()
        output = model.generate(prompts(), **RUN, **HALF, output_hidden_states=True)
        assert [states[-1].shape[1] for states in output.hidden_states] == [20, *[1] * 8]
        plain = model.generate(prompts(), **RUN, **HALF)
        assert torch.equal(output.sequences, plain.sequences) and plain.hidden_states is None
        head = model.get_output_embeddings()
        for states, logits in zip(output.hidden_states, output.logits, strict=True):
            torch.testing.assert_close(head(states[-1][:, -1]).float(), logits)

    def test_hidden_states_of_a_turn_are_those_of_its_tokens(self):
        model = sol_model()
        turn = model.generate(prompts(), **{**RUN, "max_new_tokens": 4}, **HALF)
        text = torch.cat([turn.sequences, prompts(2, 3, seed=5)], dim=1)
        asked = {"attention_mask": torch.ones_like(text), "output_hidden_states": True}
        cache, known = turn.past_key_values, DynamicCache(config=model.base.config)
        model.base(text[:, :23], past_key_values=known)
        output = model.generate(text, **asked, **RUN, **always(model, "dense"), past_key_values=cache)
        expected = model.base.generate(text, **asked, **RUN, past_key_values=known)
        for ours, theirs in zip(output.hidden_states, expected.hidden_states, strict=True):
            for layer, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(layer, other, **CLOSE)

    def test_attention_weights_of_a_dense_turn(self):
        model = control(tiny_base("llama", torch.float64, attn_implementation="eager"))
        turn = model.generate(prompts(), **{**RUN, "max_new_tokens": 4}, **HALF)
        more, known = prompts(2, 3, seed=5), DynamicCache(config=model.base.config)
        model.base(turn.sequences[:, :23], past_key_values=known)
        new = torch.cat([turn.sequences[:, 23:], more], dim=1)
        ours = model(new, past_key_values=turn.past_key_values, output_attentions=True).attentions
        theirs = model.base(new, past_key_values=known, output_attentions=True).attentions
        for layer, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(layer, other, **CLOSE)

    def test_attention_weights_under_a_budget_are_refused(self):
        model = control(tiny_base("llama", torch.float64, attn_implementation="eager"))
        with pytest.raises(ValueError, match="output_attentions. cannot be used under a budget"):
            model.generate(prompts(), **RUN, **HALF, output_attentions=True)
        model.base.config.output_attentions = True
        output = model.generate(prompts(), **RUN, **HALF)
        assert output.attentions is None

    def test_logits_of_routers_cover_all_tokens(self):
        base = tiny_base("mixtral", num_local_experts=2, num_experts_per_tok=1)
        model = control(base)
        cache = model.new_cache()
        options = {"token_keep": 0.9, "budget_mode": "soft", **always(model, "dense")}
        resolved = resolve_options(options, None, model.generation_config)
        session = DecodingSession(base, cache, controls_for(resolved, base, model.policy, model.config, 2), 17)
        with session.running():
            output = model(prompts(), past_key_values=cache, output_router_logits=True)
        expected = base(prompts(), output_router_logits=True)
        assert len(cache.trace) == 3
        for ours, theirs in zip(output.router_logits, expected.router_logits, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("keep", [0, 1, 5, torch.tensor([0, 3, 19]), torch.tensor([2])])
    def test_logits_to_keep(self, keep):
        model = sol_model()
        ours = model(prompts(), past_key_values=model.new_cache(), logits_to_keep=keep).logits
        torch.testing.assert_close(ours, model.base(prompts(), logits_to_keep=keep).logits, **CLOSE)

    def test_a_tuple_if_asked_for(self):
        model = sol_model()
        output = model(prompts(), past_key_values=model.new_cache(), return_dict=False)
        assert isinstance(output, tuple) and output[0].shape == (2, 20, 99)


def test_ids_and_embeddings_at_once_are_refused():
    model = sol_model()
    embeds = model.get_input_embeddings()(prompts())
    for arguments in ({}, {"input_ids": prompts(), "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="Pass either `input_ids` or `inputs_embeds`"):
            model(**arguments, past_key_values=model.new_cache())
