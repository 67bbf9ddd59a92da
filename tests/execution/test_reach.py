# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A budget reaches all of the text decoder and nothing else, also if the base was changed between two calls."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from sol_hf import FixedController, SOLConfig, SOLForCausalLM
from sol_hf.execution.attention.step import gather
from support.bases import SIZES, tiny_base
from support.cases import control, prompts, sol_model


OPTIONS = {"max_new_tokens": 4, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
CHEAPEST = {"token_keep": 0.2, "mlp_keep": 0.4, "bits": 3, "controller": FixedController()}


def from_sizes(family: str, kind=AutoModelForCausalLM, **sizes) -> PreTrainedModel:
    torch.manual_seed(0)
    base = kind.from_config(AutoConfig.for_model(family, **{**SIZES, **sizes}), dtype=torch.float32).eval()
    base.generation_config.pad_token_id = 0
    return base


def first_logits(model: SOLForCausalLM, **options) -> torch.Tensor:
    """Logits `(rows, steps, vocab)` of a few generated tokens."""
    return torch.stack(model.generate(prompts(length=40), **OPTIONS, **options).logits, dim=1)


class TestModulesThatWereReplaced:
    def test_mlps(self):
        expected, model = first_logits(sol_model(), **CHEAPEST), sol_model()
        first_logits(model, **CHEAPEST)
        for layer in model.base.model.layers:
            layer.mlp = copy.deepcopy(layer.mlp)
        assert torch.equal(first_logits(model, **CHEAPEST), expected)
        assert torch.equal(first_logits(control(model.base), **CHEAPEST), expected)

    def test_layers_that_are_deep_copies(self):
        """Depth up-scaling: a copied layer has a config of its own."""
        expected, model = first_logits(sol_model(), **CHEAPEST), sol_model()
        first_logits(model, **CHEAPEST)
        layers = model.base.model.layers
        layers[1] = copy.deepcopy(layers[1])
        assert layers[1].self_attn.config is not layers[0].self_attn.config
        assert torch.equal(first_logits(model, **CHEAPEST), expected)
        assert layers[1].self_attn.config._attn_implementation == "sdpa"

    def test_a_layer_that_is_added(self):
        base = tiny_base("llama", torch.float64)
        model = control(base)
        first_logits(model, **CHEAPEST)
        base.model.layers.append(copy.deepcopy(base.model.layers[1]))
        base.model.layers[2].self_attn.layer_idx = 2
        base.config.num_hidden_layers = 3
        model = control(base)
        assert all(layers == (0, 1, 2) for layers in model.coverage().layers.values())
        assert model.generate(prompts(), **OPTIONS, **CHEAPEST).realised[0].tolist() == pytest.approx([0.2, 0.4, 3])

    def test_while_another_call_runs(self):
        """The running call stops rather than going on without its budget; the new one finds the new module."""
        model, seen = sol_model(), []
        spare = copy.deepcopy(model.base.model.layers[1].mlp)

        class Replacing(FixedController):
            def __call__(self, observation):
                if observation.total_step == 2 and not seen:
                    seen.append(1)
                    layers = model.base.model.layers
                    layers[1].mlp = spare
                    seen.append(first_logits(control(model.base), **CHEAPEST))
                return super().__call__(observation)

        with pytest.raises(RuntimeError, match="the MLP of layer 1"):
            first_logits(model, **{**CHEAPEST, "controller": Replacing()})
        assert torch.equal(seen[1], first_logits(sol_model(), **CHEAPEST))
        assert all("forward" not in vars(module) for module in model.base.modules())


class TestTowers:
    TEXT = {**SIZES, "model_type": "llama"}
    VISION = dict(
        model_type="clip_vision_model", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, image_size=8, patch_size=4, projection_dim=32,
    )  # fmt: skip

    def test_a_vision_tower_with_as_many_layers(self):
        base = from_sizes("llava", AutoModelForImageTextToText, text_config=self.TEXT, vision_config=self.VISION)
        model = control(base)
        assert all(layers == (0, 1) for layers in model.coverage().layers.values())
        seen = []

        class Looking(FixedController):
            def __call__(self, observation):
                changed = [name for name, module in base.named_modules() if "forward" in vars(module)]
                seen.append((changed, base.model.vision_tower.config._attn_implementation))
                return super().__call__(observation)

        output = model.generate(prompts(length=40), **OPTIONS, **{**CHEAPEST, "controller": Looking()})
        assert output.realised[0].tolist() == pytest.approx([0.2, 0.4, 3])
        assert any("language_model" in name for name in seen[0][0])
        assert not any("vision" in name for names, _ in seen for name in names)
        assert {type(name) for _, name in seen} == {str} and {name for _, name in seen} == {"sdpa"}


KV_SHARED = dict(
    num_hidden_layers=6, num_kv_shared_layers=4, layer_types=["sliding_attention", "full_attention"] * 3,
    sliding_window=16, hidden_size_per_layer_input=8, vocab_size_per_layer_input=99, laurel_rank=8,
)  # fmt: skip
SHARING = {
    "gemma4_text": {**KV_SHARED, "global_head_dim": 8},
    "gemma3n_text": {
        **KV_SHARED,
        "intermediate_size": [64] * 6,
        "activation_sparsity_pattern": [0.0] * 6,
        "laurel_rank": 8,
    },
}


class TestSharedKeys:
    @pytest.mark.parametrize("family", SHARING)
    def test_all_layers_that_share_keys_read_the_selected_ones(self, family, monkeypatch):
        """Every full-attention layer attends to as many keys as the action says, those that share keys too."""
        model, read = control(from_sizes(family, **SHARING[family])), []
        assert model.coverage().layers["token_keep"] == (1, 3, 5)
        original = gather.scaled_dot_product_attention

        def counting(query, key, value, **options):
            read.append(key.shape[2])
            return original(query, key, value, **options)

        monkeypatch.setattr(gather, "scaled_dot_product_attention", counting)
        output = model.generate(
            prompts(1, 60), **OPTIONS, token_keep=0.2, controller=FixedController(), backend="reference"
        )
        assert len(read) == 3 * 4 and max(read) < 30
        assert output.realised[0, 0] == pytest.approx(0.2)

    @pytest.mark.parametrize("family", SHARING)
    def test_a_score_without_a_budget_is_the_bases_own(self, family):
        base, ids = from_sizes(family, **SHARING[family]), prompts(length=40)
        model = control(base)
        with torch.no_grad():
            expected = base(ids[:, :-1], use_cache=False, logits_to_keep=35).logits.float().log_softmax(dim=-1)
        expected = expected.gather(-1, ids[:, -35:, None]).squeeze(-1)
        assert torch.equal(model.score(ids, context_length=4).logprobs, expected)


class TestDense:
    """Without a budget nothing is exchanged on the base, not even while it runs."""

    @pytest.mark.parametrize("options", [{}, {"token_keep": 1.0, "mlp_keep": 1.0, "bits": 16}])
    @pytest.mark.parametrize("over_own_cache", [False, True])
    def test_nothing_is_exchanged(self, options, over_own_cache):
        model, seen = sol_model(), []
        base = model.base

        def look(*_):
            changed = [name for name, module in base.named_modules() if "forward" in vars(module)]
            seen.append((changed, type(base.config._attn_implementation), base.config._attn_implementation))

        base.model.register_forward_hook(look)
        model.score(prompts(), context_length=4, **options)
        cache = model.new_cache() if over_own_cache else None
        model.generate(prompts(), max_new_tokens=3, do_sample=False, past_key_values=cache, **options)
        assert seen and all(entry == ([], str, "sdpa") for entry in seen)

    def test_gpt2_that_upcasts_its_scores(self):
        """Its code compares the name of the implementation with `eager`."""
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 99}
        config = AutoConfig.for_model("gpt2", **sizes, reorder_and_upcast_attn=True, attn_implementation="eager")
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
        base.generation_config.pad_token_id, base.generation_config.eos_token_id = 0, None
        model = SOLForCausalLM.from_base(base, SOLConfig(policy_hidden_size=32, policy_num_heads=2))
        ids = prompts(length=40)
        with torch.no_grad():
            expected = base(ids[:, :-1]).logits[:, 4:]
        assert torch.equal(model.score(ids, context_length=4, return_logits=True).logits, expected)
