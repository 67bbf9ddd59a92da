# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policies in `model_cards/`: complete as a repository, kept budgets, choices that differ from token to token."""

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from sol_hf import SOLConfig, SOLForCausalLM
from support.paths import ROOT


FOLDER = ROOT / "model_cards" / "sol-smollm2-135m"
RECOMMENDED = ROOT / "model_cards" / "sol-smollm2-135m-recommended"
BUDGETS = [(0.2, 0.5, 6), (0.5, 0.7, 8), (0.8, 0.5, 8)]


@pytest.fixture(scope="module")
def base() -> LlamaForCausalLM:
    """A base of SmolLM2's widths, but two layers of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model(base):
    return SOLForCausalLM.from_pretrained(FOLDER, base=base)


@pytest.mark.parametrize("folder, actions", [(FOLDER, 1560), (RECOMMENDED, 900)], ids=["published", "recommended"])
def test_the_folder_is_a_repository_of_a_policy(folder, actions):
    config, base_name = SOLConfig.from_pretrained(folder), "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert len(config.action_space) == actions and config.base_model_name_or_path == base_name
    policy = AutoModel.from_pretrained(folder)
    assert all(bool(parameter.isfinite().all()) for parameter in policy.parameters())
    policy = {"README.md", "config.json", "generation_config.json", "model.safetensors", ".eval_results/bigbench.yaml"}
    code = {"sol_remote.py", "sol_plain.py", "custom_generate/generate.py"}
    tokenizer = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    assert set(files) - {"learning_curve.png"} == policy | code | tokenizer
    assert files["model.safetensors"].stat().st_size < 8e6
    assert sum(path.stat().st_size for path in files.values()) < 12e6


@pytest.mark.slow
def test_the_recommended_one_keeps_its_budgets_in_planes(base):
    model = SOLForCausalLM.from_pretrained(RECOMMENDED, base=base, check_base=False)
    assert model.generation_config.bits_backend == "nested" and model.config.criterion == "sketch"
    inputs = torch.randint(49152, (1, 40), generator=torch.Generator().manual_seed(1))
    budget = dict(token_keep=0.2, mlp_keep=0.8, bits=6, neuron_keep=0.7)
    options = dict(max_new_tokens=32, min_new_tokens=32, return_dict_in_generate=True, pad_token_id=0, **budget)
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), **options)
    targets, dense = torch.tensor(list(budget.values())), torch.tensor([1.0, 1.0, 16.0, 1.0])
    assert bool((output.realised <= targets + (dense - targets) / 32 + 1e-6).all())
    assert bool((output.realised / targets > 0.85).all())
    share = model.generate(
        inputs, attention_mask=torch.ones_like(inputs), compute=0.5, **{**options, **dict.fromkeys(budget)}
    )
    assert share.net_keep.tolist() == pytest.approx([0.5], abs=0.05)


def test_its_tokenizer_and_chat_template_are_those_of_the_base():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert len(tokenizer) == 49152 and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.decode(tokenizer("The sea is wide.").input_ids) == "The sea is wide."
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}], tokenize=False)
    assert text.endswith("<|im_start|>user\nHello<|im_end|>\n")
    assert "apache-2.0" in (FOLDER / "README.md").read_text()


def test_its_options_are_those_of_a_policy_that_keeps_budgets(model):
    assert (model.generation_config.budget_mode, model.generation_config.budget_horizon) == ("hard", "generation")
    inputs = torch.randint(49152, (1, 12), generator=torch.Generator().manual_seed(3))
    options = dict(attention_mask=torch.ones_like(inputs), max_new_tokens=4, pad_token_id=0)
    dense = model.base.generate(inputs, **options)
    assert torch.equal(model.generate(inputs, **options), dense), "without a budget it is the base"


@pytest.mark.parametrize("options", [{}, {"exact": True}, {"budget_horizon": "episode"}], ids=str)
@pytest.mark.parametrize("budget", BUDGETS)
def test_it_keeps_a_budget_and_spends_it_unevenly(model, budget, options):
    token_keep, mlp_keep, bits = budget
    inputs = torch.randint(49152, (2, 40), generator=torch.Generator().manual_seed(1))
    output = model.generate(
        inputs,
        attention_mask=torch.ones_like(inputs),
        max_new_tokens=32,
        min_new_tokens=32,
        token_keep=token_keep,
        mlp_keep=mlp_keep,
        bits=bits,
        return_dict_in_generate=True,
        pad_token_id=0,
        **options,
    )
    targets, dense = torch.tensor(budget, dtype=output.realised.dtype), torch.tensor([1.0, 1.0, 16.0])
    most = targets if options else targets + (dense - targets) / 32
    assert bool((output.realised <= most + 1e-6).all())
    assert bool((output.realised / targets > 0.85).all())
    levels = model.action_space.values[output.actions]
    assert len(levels[..., 0].unique()) > 2, "a fixed schedule has two levels of an axis at the most"


@pytest.mark.parametrize("compute", [0.4, 0.6, 0.9])
def test_its_dial_spends_about_what_it_says(model, compute):
    inputs = torch.randint(49152, (2, 40), generator=torch.Generator().manual_seed(2))
    options = dict(max_new_tokens=32, min_new_tokens=32, return_dict_in_generate=True, pad_token_id=0)
    output = model.generate(inputs, attention_mask=torch.ones_like(inputs), compute=compute, **options)
    net_keep = (output.realised / torch.tensor([1, 1, 16])).mean(dim=1)
    assert net_keep.tolist() == pytest.approx([compute] * 2, abs=0.05)
