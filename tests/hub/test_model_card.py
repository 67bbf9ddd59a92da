# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The model card names the axes that a policy has."""

from sol_hf import SOLConfig
from sol_hf.hub.model_card import build_card
from support.cases import sol_model
from support.extra_axis import FOUR_LEVELS


def test_the_published_axes(mlp_noise):
    text = build_card(SOLConfig(bits=[8, 16])).text
    assert "It also chooses" not in text and "mlp_noise" not in text
    assert "token_keep=0.5, mlp_keep=0.7, bits=8, return_dict_in_generate=True\n" in text
    assert "| `mlp_keep` levels | 0.4 … 1 (13) |\n| `bits` levels | 8 … 16 (2) |\n| criterion | `quest`" in text
    assert "a budget given to `generate`.\nThe weights of the base model" in text


def test_what_bits_saves_is_that_of_the_stored_backend(tmp_path):
    assert "`bits` quantizes the MLP output in simulation" in build_card(SOLConfig()).text
    model = sol_model(num_hidden_layers=1)
    model.generation_config.bits_backend = "nested"
    model.save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "fewer bits are fewer bytes" in text and "in simulation" not in text


def test_an_added_axis_is_described_and_used(mlp_noise):
    text = build_card(SOLConfig(**FOUR_LEVELS)).text
    assert (
        "\nIt also chooses the share of the MLP outputs without noise (`mlp_noise`).\nThe weights of the base" in text
    )
    assert "bits=8, mlp_noise=1, return_dict_in_generate=True\n" in text
    assert "| `bits` levels | 4 … 16 (3) |\n| `mlp_noise` levels | 0.5 … 1 (2) |\n| criterion | `quest`" in text
    assert "| actions | 36 |" in text
