# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`kv_dtype`: the keys and values of a base in float32 are kept in bfloat16, in every call that asks for it."""

import copy
import pickle

import pytest
import torch
from transformers import DynamicCache

from sol_hf import FixedController, SOLConfig, SOLForCausalLM
from sol_hf.costs.compute_costs import ComputeCosts
from sol_hf.evaluation.families.tiny_configs import family_base
from sol_hf.execution.cuda_graphs import check_capture
from sol_hf.kernels.cpu.compilation import compile_kernels
from support.bases import tiny_base
from support.cases import left_padded, prompts


SPACE = dict(token_keep=[0.3, 1.0], mlp_keep=[0.4, 1.0], bits=[8, 16])
CALL = dict(max_new_tokens=8, do_sample=False, return_dict_in_generate=True, output_logits=True, pad_token_id=0)
OVERRIDES = {"gemma3_text": {"sliding_window": 16}, "mistral": {"sliding_window": 16}}
FAMILIES = ["llama", "qwen2", "gemma3_text", "mistral", "gpt2", "gpt_neox", "phi3"]


def model_of(family="llama", dtype=torch.float32, **fields) -> SOLForCausalLM:
    torch.manual_seed(3)
    base = tiny_base(family, dtype, **OVERRIDES.get(family, {}))
    return SOLForCausalLM.from_base(base, SOLConfig(**{**SPACE, "episode_length": 6, "page_size": 4, **fields}))


def logits_of(model, **options) -> torch.Tensor:
    controlled = {"controller": FixedController()} if set(SPACE) & set(options) else {}
    return torch.stack(model.generate(**{**CALL, **controlled, **options}).logits, dim=1)


class RoundedCache(DynamicCache):
    """transformers' cache, with keys and values that were rounded to bfloat16."""

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        rounded = [x.bfloat16().to(x.dtype) for x in (key_states, value_states)]
        return super().update(*rounded, layer_idx, *args, **kwargs)


def rounded_logits(base, length=8, **inputs) -> torch.Tensor:
    """Logits of the base over a cache that rounds."""
    call = {**CALL, "max_new_tokens": length}
    output = base.generate(**inputs, **call, past_key_values=RoundedCache(config=base.config))
    return torch.stack(output.logits, dim=1)


@pytest.mark.parametrize("family", FAMILIES)
def test_dense_steps_give_what_the_base_gives_over_rounded_keys(family):
    model = model_of(family)
    found = logits_of(model, input_ids=prompts(2, 24), kv_dtype="bfloat16", backend="reference")
    expected = rounded_logits(model.base, input_ids=prompts(2, 24))
    own = torch.stack(model.base.generate(prompts(2, 24), **CALL).logits, dim=1)
    by_rounding = float((found - own).abs().amax())
    assert 1e-4 < by_rounding < 0.5
    assert float((found - expected).abs().median()) < 1e-5  # a number on the border may be rounded either way
    assert float((found - expected).abs().amax()) < 0.2 * by_rounding


def test_a_padded_row_gives_the_same_alone():
    model, rows = model_of(), [prompts(1, length, seed=length)[0] for length in (11, 40)]
    together = logits_of(model, kv_dtype="bfloat16", token_keep=0.3, backend="reference", **left_padded(rows))
    for place, row in enumerate(rows):
        alone = logits_of(model, kv_dtype="bfloat16", token_keep=0.3, backend="reference", input_ids=row[None])
        torch.testing.assert_close(together[place : place + 1], alone, atol=1e-4, rtol=1e-4)


class TestWhereItIsSaid:
    """In a call, in the generation config, or in the config, in this order."""

    @pytest.mark.parametrize("place", ["call", "stored", "config"])
    def test_it_holds_for_the_cache_of_a_call(self, place):
        model = model_of(**({"kv_dtype": "bfloat16"} if place == "config" else {}))
        if place == "stored":
            model.generation_config.kv_dtype = "bfloat16"
        options = {"kv_dtype": "bfloat16"} if place == "call" else {}
        output = model.generate(prompts(), **CALL, token_keep=0.3, controller=FixedController(), **options)
        assert output.past_key_values.layers[0].stored_dtype == torch.bfloat16
        if place != "call":
            assert model.new_cache().kv_dtype == torch.bfloat16
            assert "keys and values are kept in bfloat16" in str(model.coverage())

    def test_a_call_has_the_last_word(self):
        model = model_of(kv_dtype="bfloat16")
        output = model.generate(prompts(), **CALL, token_keep=0.3, controller=FixedController(), kv_dtype="float32")
        assert output.past_key_values.layers[0].stored_dtype == torch.float32
        assert "kept in" not in str(model_of().coverage())

    def test_it_is_saved_with_a_policy(self, tmp_path):
        model = model_of(kv_dtype="bfloat16")
        model.save_pretrained(tmp_path)
        again = SOLForCausalLM.from_pretrained(tmp_path, base=model.base)
        assert again.config.kv_dtype == "bfloat16" and again.new_cache().kv_dtype == torch.bfloat16
        assert "kv_dtype" not in model_of().config.to_dict()

    def test_a_call_without_steps_runs_the_base_unless_it_asks(self):
        model = model_of(kv_dtype="bfloat16")
        own = torch.stack(model.base.generate(prompts(), **CALL).logits, dim=1)
        assert torch.equal(logits_of(model, input_ids=prompts()), own)
        assert not torch.equal(logits_of(model, input_ids=prompts(), kv_dtype="bfloat16"), own)


class TestScore:
    def test_it_replays_a_text(self):
        model = model_of()
        call = dict(token_keep=0.3, controller=FixedController(), kv_dtype="bfloat16", backend="reference")
        output = model.generate(prompts(2, 24), **CALL, **call)
        scored = model.score(output.sequences, context_length=23, return_logits=True, **call).logits
        torch.testing.assert_close(
            scored[:, :8], torch.stack(output.logits, dim=1)[:, : scored.shape[1]], atol=1e-5, rtol=1e-5
        )

    @pytest.mark.parametrize("budget", [{}, dict(token_keep=1.0, mlp_keep=1.0, bits=16)], ids=["none", "dense"])
    def test_a_dense_score_is_over_rounded_keys_too(self, budget):
        model, ids = model_of(), prompts(1, 30)
        found = model.score(ids, context_length=20, kv_dtype="bfloat16", backend="reference", **budget)
        own = model.score(ids, context_length=20)
        assert not torch.equal(found.logprobs, own.logprobs)
        cache, base = RoundedCache(config=model.base.config), model.base
        with torch.no_grad():
            logits = base(ids, past_key_values=cache).logits.log_softmax(dim=-1)
        expected = logits[:, 20:-1].gather(2, ids[:, 21:, None])[..., 0]
        torch.testing.assert_close(found.logprobs, expected, atol=1e-5, rtol=1e-5)


class TestCache:
    def test_it_takes_half_the_bytes_also_when_it_is_saved(self):
        caches = {}
        for kv_dtype in ("float32", "bfloat16"):
            model = model_of()
            call = dict(token_keep=0.3, controller=FixedController(), kv_dtype=kv_dtype)
            caches[kv_dtype] = model.generate(prompts(2, 200), **CALL, **call).past_key_values
        held = {name: sum(x.nbytes for x in cache.layers[0].stores()) for name, cache in caches.items()}
        assert 2 * held["bfloat16"] == held["float32"]
        assert len(pickle.dumps(caches["bfloat16"])) < 0.6 * len(pickle.dumps(caches["float32"]))

    @pytest.mark.parametrize("family", ["llama", "gemma3_text"])
    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))])
    def test_a_copy_goes_on_like_the_original(self, family, copied):
        model = model_of(family)
        call = {**CALL, "token_keep": 0.3, "controller": FixedController()}
        turn = model.generate(prompts(2, 30), **call, kv_dtype="bfloat16")
        text = torch.cat([turn.sequences, prompts(2, 3, seed=8)], dim=1)
        again = dict(attention_mask=torch.ones_like(text), **call)
        caches = [copied(turn.past_key_values), turn.past_key_values]
        first, second = (torch.stack(model.generate(text, **again, past_key_values=x).logits) for x in caches)
        assert torch.equal(first, second)
        assert all(layer.stored_dtype == torch.bfloat16 for cache in caches for layer in cache.layers)

    def test_another_dtype_than_that_of_the_cache_is_refused(self):
        model = model_of()
        call = {**CALL, "token_keep": 0.3, "controller": FixedController()}
        cache = model.new_cache(kv_dtype="bfloat16")
        turn = model.generate(prompts(2, 30), **call, past_key_values=cache)  # the cache knows it
        text = torch.cat([turn.sequences, prompts(2, 3, seed=8)], dim=1)
        again = dict(attention_mask=torch.ones_like(text), past_key_values=cache, **call)
        with pytest.raises(ValueError, match="keys and values in bfloat16, but the call needs them in float32: leave"):
            model.generate(text, kv_dtype="float32", **again)
        assert model.generate(text, kv_dtype="bfloat16", **again).sequences.shape[1] > text.shape[1]


class TestRefused:
    @pytest.mark.parametrize("value", ["int4", "half", torch.bfloat16, 16, True])
    def test_other_values(self, value):
        with pytest.raises(ValueError, match="`kv_dtype` must be"):
            model_of().generate(prompts(), kv_dtype=value, token_keep=0.3, controller=FixedController())
        with pytest.raises(ValueError, match="kv_dtype"):
            SOLConfig(kv_dtype=value)

    def test_bases_in_another_dtype(self):
        with pytest.raises(ValueError, match="is for bases in float32"):
            model_of(dtype=torch.float16).generate(
                prompts(), kv_dtype="bfloat16", token_keep=0.3, controller=FixedController()
            )

    def test_more_bits_than_the_base_has(self):
        with pytest.raises(ValueError, match="This base is in bfloat16: leave `kv_dtype` out"):
            model_of(dtype=torch.bfloat16).new_cache(kv_dtype="float32")

    def test_lossless_texts(self):
        """Their text is the base's, over keys in its own dtype."""
        model = model_of(kv_dtype="bfloat16")
        call = {**CALL, "lossless": True, "bits": 8, "controller": FixedController()}
        with pytest.raises(ValueError, match="gives the text of the base, which keys and values in bfloat16 would"):
            model.generate(prompts(1), **call)
        with pytest.raises(ValueError, match="but the call needs them in float32"):
            model.generate(prompts(1), **call, kv_dtype="float32", past_key_values=model.new_cache())
        own = model.base.generate(prompts(1), **CALL).sequences
        assert torch.equal(model.generate(prompts(1), **call, kv_dtype="float32").sequences, own)

    def test_a_base_without_keys(self):
        model = SOLForCausalLM.from_base(family_base("mamba"), SOLConfig(**SPACE))
        with pytest.raises(ValueError, match="has nothing to apply to: MambaForCausalLM has no layers with keys"):
            model.new_cache(kv_dtype="bfloat16")

    def test_cuda_graphs(self, monkeypatch):
        monkeypatch.setattr("sol_hf.kernels.cuda.triton_support.has_triton", lambda: True)
        model = model_of(kv_dtype="bfloat16")
        with pytest.raises(ValueError, match="leave out `kv_dtype`, or `cuda_graphs`"):
            check_capture(model.base, model.new_cache(), model.config.selection_rule)


def test_the_dtype_of_the_base_changes_nothing():
    model = model_of(dtype=torch.bfloat16)
    call = dict(input_ids=prompts(), token_keep=0.3)
    assert torch.equal(logits_of(model, **call), logits_of(model, **call, kv_dtype="bfloat16"))


@pytest.mark.parametrize("criterion", ["quest", "sketch"])
def test_bytes_are_counted_as_they_are_stored(criterion):
    costs = {}
    for kv_dtype in (None, "bfloat16"):
        model = model_of(criterion=criterion, kv_dtype=kv_dtype)
        costs[kv_dtype] = ComputeCosts.of(model, 1000, kv_refresh=True)
    own, half = costs[None], costs["bfloat16"]
    assert half.dense_bytes == own.dense_bytes == float(own.bytes.max())
    keys_and_values = 2 * 2 * 2 * 8 * 4 * (1000 + 3)  # both, layers, heads, channels, bytes, keys
    assert own.dense_bytes - float(half.bytes.max()) == keys_and_values / 2
    assert float(half.bytes.min()) < float(own.bytes.min())
    assert half.refresh_bytes == pytest.approx(own.refresh_bytes - keys_and_values / 2 / 6)


def test_warmup_loads_the_kernels_that_read_such_a_cache(monkeypatch):
    loaded = set()
    monkeypatch.setattr("sol_hf.kernels.cpu.code_cache.Kernel.load", lambda kernel: loaded.add(kernel.__name__))
    compile_kernels([torch.float32], torch.bfloat16)
    with_cache = set(loaded)
    loaded.clear()
    compile_kernels([torch.float32])
    assert with_cache - loaded == {"attend_bfloat16", "rotate_bfloat16"}


def test_warmup_prepares_calls_that_ask_for_it():
    model = model_of()
    assert "kept in bfloat16" in str(model.warmup(kv_dtype="bfloat16", token_keep=0.3, controller=FixedController()))
