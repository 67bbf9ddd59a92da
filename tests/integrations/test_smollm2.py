# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from sol_hf.integrations.smollm2 import fetch_smollm2


@pytest.mark.slow
def test_real_model(tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = fetch_smollm2(tmp_path)
    assert [path.name for path in tmp_path.glob("[!.]*")] == ["SmolLM2-135M-Instruct"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.dtype == torch.float32
    assert getattr(model.config, "quantization_config", None) is None
    assert (tokenizer.padding_side, tokenizer.eos_token_id, tokenizer.pad_token_id) == ("left", 2, 2)
    assert (
        tokenizer("  12").input_ids == tokenizer("  ").input_ids + tokenizer("1").input_ids + tokenizer("2").input_ids
    )

    questions = ["What is the capital of France?", "Tell me, please: which big city is the capital of Italy?"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    )
    assert inputs["attention_mask"].min() == 0
    new = model.generate(**inputs, max_new_tokens=16, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(new, skip_special_tokens=True)
    assert answers[0] == "The capital of France is Paris."
    assert "Rome" in answers[1]
    assert new[0, -1] == tokenizer.pad_token_id
