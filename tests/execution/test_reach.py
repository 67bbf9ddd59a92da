# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A budget reaches all of the text decoder and nothing else, also if the base was changed between two calls."""

import copy
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from sol_hf import FixedController, SOLConfig, SOLForCausalLM, UnsupportedAxisError
from sol_hf.execution.attention.step import gather
from support.bases import SIZES, tiny_base
from support.cases import HALF, control, prompts, sol_model


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
        original = gather.attend

        def counting(query, key, value, *options):
            read.append(key.shape[2])
            return original(query, key, value, *options)

        monkeypatch.setattr(gather, "attend", counting)
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


def test_model_code_may_compare_the_implementation_with_anything():
    """With warnings as errors, too."""
    model, seen = sol_model(), []

    def look(*_):
        name = model.base.config._attn_implementation
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seen.append((name == "sdpa", name == "eager", name == None, name != None, name == 3))  # noqa: E711

    model.base.model.register_forward_hook(look)
    model.generate(prompts(), max_new_tokens=2, do_sample=False, **HALF)
    assert seen and set(seen) == {(True, False, False, True, False)}


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


class TestHeadsAndEmbeddings:
    """After a first generation, and for a new wrapper too."""

    def used(self, family: str = "llama") -> SOLForCausalLM:
        model = sol_model(family)
        first_logits(model, **CHEAPEST)
        return model

    def assert_works(self, model: SOLForCausalLM, vocabulary: int) -> None:
        base, ids = model.base, prompts(length=40)
        for wrapper in (model, control(base)):
            output = wrapper.generate(ids, **OPTIONS, **CHEAPEST)
            assert output.realised[0].tolist() == pytest.approx([0.2, 0.4, 3])
            assert torch.stack(output.logits).shape[-1] == vocabulary
            expected = base.generate(ids, **OPTIONS)
            assert torch.equal(torch.stack(wrapper.generate(ids, **OPTIONS).logits), torch.stack(expected.logits))

    def test_resized_embeddings_of_the_base(self):
        model = self.used()
        model.base.resize_token_embeddings(120)
        self.assert_works(model, 120)

    def test_resized_embeddings_of_the_model(self, tmp_path):
        model = self.used()
        model.resize_token_embeddings(120)
        assert model.base.config.vocab_size == model.config.base_vocab_size == 120
        assert model.base.get_input_embeddings().weight.shape[0] == 120
        self.assert_works(model, 120)
        model.save_pretrained(tmp_path)
        loaded = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
        assert loaded.config.base_vocab_size == 120

    def test_another_head(self):
        model = self.used()
        model.base.set_output_embeddings(copy.deepcopy(model.base.get_output_embeddings()))
        self.assert_works(model, 99)
        model.set_output_embeddings(copy.deepcopy(model.base.get_output_embeddings()))
        self.assert_works(model, 99)

    def test_modules_to_save(self):
        peft = pytest.importorskip("peft")
        model = self.used()
        adapter = peft.LoraConfig(target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
        peft.get_peft_model(model.base, adapter)
        self.assert_works(model, 99)

    def test_a_head_that_accepts_no_empty_input(self):
        """As heads in int8 do: at a KV refresh, whose logits nobody needs, they get one token."""

        class Picky(torch.nn.Linear):
            def forward(self, x):
                if x.numel() == 0:
                    raise TypeError("no tokens")
                return super().forward(x)

        expected, model = sol_model(), sol_model()
        head = Picky(32, 99, bias=False, dtype=torch.float64)
        head.load_state_dict(model.base.lm_head.state_dict())
        model.base.lm_head = head
        options = {**OPTIONS, "max_new_tokens": 10, **CHEAPEST}
        outputs = [m.generate(prompts(length=40), **options) for m in (expected, model)]
        assert torch.equal(outputs[0].sequences, outputs[1].sequences)


class TestOffloadedBases:
    @pytest.mark.parametrize("place", ["cpu", "disk"])
    def test_the_policy_stays_and_the_result_is_the_same(self, place, tmp_path):
        accelerate = pytest.importorskip("accelerate")
        expected = first_logits(sol_model(), **CHEAPEST)
        base = tiny_base("llama", torch.float64)
        if place == "cpu":
            accelerate.cpu_offload(base, execution_device=torch.device("cpu"))
        else:
            accelerate.disk_offload(base, str(tmp_path), execution_device=torch.device("cpu"))
        assert base.device.type == "meta"
        model = control(base)
        assert model.policy.device.type == "cpu"
        assert torch.equal(first_logits(model, **CHEAPEST), expected)
        ids = prompts(length=20)
        scores = [m.score(ids, context_length=9, token_keep=0.5).logprobs for m in (model, sol_model())]
        assert torch.equal(*scores)
        output = model.score(ids, context_length=9, mlp_keep=0.4, controller=FixedController(), kv_refresh=False)
        assert model.device.type == "cpu" and output.bytes_share.tolist() == pytest.approx([1.0] * len(ids))

    def test_a_base_without_weights_says_so(self):
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES))
        with pytest.raises(ValueError, match="meta device, without weights: load it first"):
            control(base)


class TestBasesWithAnotherCache:
    SIZES = {
        "openai-gpt": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 99},
        "xlstm": {"num_heads": 4, "num_hidden_layers": 2, "hidden_size": 32, "vocab_size": 99},
        "minimax": {**SIZES, "num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"]},
    }

    @pytest.mark.parametrize("family", SIZES)
    def test_a_budget_is_refused_before_any_compute(self, family):
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **self.SIZES[family])).eval()
        model, calls = control(base), []
        base.register_forward_pre_hook(lambda *_: calls.append(1))
        for budget in ({"token_keep": 0.5}, {"mlp_keep": 0.5}, {"bits": 8}):
            with pytest.raises(
                UnsupportedAxisError, match="cannot be controlled: .*(cache of its own|takes no `past)"
            ):
                model.generate(prompts(), max_new_tokens=2, **budget)
        assert not calls and set(model.coverage().layers.values()) == {()}

    def test_gpt2_that_upcasts_its_scores(self):
        sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256, "vocab_size": 99}
        config = AutoConfig.for_model("gpt2", **sizes, reorder_and_upcast_attn=True)
        model = control(AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval())
        with pytest.raises(UnsupportedAxisError, match="`reorder_and_upcast_attn`.*attn_implementation='sdpa'"):
            model.generate(prompts(), max_new_tokens=2, token_keep=0.5)
