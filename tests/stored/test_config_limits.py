# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A `config.json` from a stranger: it is read, or refused by file and field, quickly and without allocating much."""

import dataclasses
import json
import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from sol_hf import ActionSpace, SOLConfig
from sol_hf.stored.config_keys import FROM_TRANSFORMERS, WITHOUT_EFFECT
from sol_hf.stored.fields import CHECKS


FIELDS = sorted(
    {field.name for field in dataclasses.fields(SOLConfig)} | {*FROM_TRANSFORMERS, *WITHOUT_EFFECT} - {"model_type"}
)
HOSTILE = [
    None,
    True,
    -1,
    0,
    10**18,
    10**400,
    float("nan"),
    float("inf"),
    -0.0,
    "",
    "x",
    "quest",
    "x" * 100_000,
    [],
    {},
    [[1]],
    [None],
    ["a"],
    ["token_keep"],
    [float("nan")],
    [0.5, 0.5],
    [10**400],
    [1.0] * 100_000,
    {"a": {}},
    [{}],
    [{"net_keep": "x"}],
    [{"net_keep": 10**400, "token_keep": 1, "mlp_keep": 1, "bits": 16, "log_perplexity": 1}],
]


def write(folder: Path, **values) -> Path:
    folder.mkdir(exist_ok=True)
    levels = {"token_keep": [0.5, 1.0], "mlp_keep": [0.5, 1.0], "bits": [8, 16]}  # few, to be fast
    (folder / "config.json").write_text(json.dumps({"model_type": "sol", **levels, **values}))
    return folder


def outcome(folder: Path, load=AutoConfig.from_pretrained) -> str:
    """What a load ends in: an empty string, or the message of its ValueError. Any other error goes through."""
    try:
        config = load(folder)
    except ValueError as error:
        return str(error)
    assert type(config) is SOLConfig
    return ""


def test_every_field_with_every_hostile_value(tmp_path):
    refused = 0
    for field in FIELDS:
        for value in HOSTILE:
            if field == "auto_map":  # transformers reads it before this package is asked
                continue
            message = outcome(write(tmp_path, **{field: value}))
            refused += bool(message)
            if message:
                assert str(tmp_path / "config.json") in message, (field, value, message)
                assert field in message or "axis" in message, (field, value, message)
                assert len(message) < 2500, (field, value)
    assert refused > 300


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(
        st.sampled_from(sorted({*CHECKS, "token_keep", "mlp_keep", "bits", "base_fingerprint", "dtype"})),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
            max_leaves=8,
        ),
        max_size=3,
    )
)
def test_any_values_in_any_fields(tmp_path, values):
    message = outcome(write(tmp_path, **values), SOLConfig.from_pretrained)
    assert not message or "config.json" in message


@pytest.mark.parametrize(
    "content", ["null", "[]", "3", '"text"', "{", "", '{"page_size": 8', "[" * 100_000, "1" * 5000]
)
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match="config.json") as caught:
        SOLConfig.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_bytes_that_are_no_text_are_named(tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"config.json is truncated or damaged"):
        SOLConfig.from_pretrained(tmp_path)


def test_a_huge_file_is_not_parsed(tmp_path):
    with (tmp_path / "config.json").open("w") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="at most 8,388,608 are read"):
        SOLConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"page_size": 10**9}, "`page_size` must be at most 1,024, got 1000000000"),
        ({"episode_length": 10**9}, "`episode_length` must be at most 16,384"),
        ({"policy_num_layers": 10**6}, "`policy_num_layers` must be at most 128"),
        ({"policy_hidden_size": 10**9}, "`policy_hidden_size` must be at most 16,384"),
        ({"action_embedding_size": 10**9}, "`action_embedding_size` must be at most"),
        ({"policy_mlp_ratio": 1e30}, "`policy_mlp_ratio` must be at most 64"),
        ({"policy_hidden_size": 16_384, "policy_num_layers": 128}, r"about [\d,]+ parameters, but at most"),
        ({"sink_tokens": 10**18}, "`sink_tokens` must be at most 1,024"),
        ({"sink_tokens": 900, "base_max_position_embeddings": 512}, "No step would be controllable"),
        ({"initializer_range": float("nan")}, "`initializer_range` must be finite"),
        ({"dtype": -1}, "`dtype` must be one of float32"),
        ({"base_hidden_size": 10**12}, "`base_hidden_size` must be at most"),
        ({"criterion": "of tomorrow"}, "Unknown criterion 'of tomorrow'"),
        ({"axes": ["token_keep", "mlp_keep", "bits", "tomorrow"]}, "axis `tomorrow`, which is not registered"),
        ({"calibration": [{"net_keep": float("nan")}]}, "A point of `calibration` has the keys"),
        ({"calibration": [{}] * 5000}, "`calibration` must have at most 1,000 entries"),
        ({"base_fingerprint": {"num_hidden_layers": "many"}}, "`num_hidden_layers` in `base_fingerprint`"),
    ],
)
def test_a_value_above_a_limit_is_refused_by_name(tmp_path, values, message):
    for load in (AutoConfig.from_pretrained, SOLConfig.from_pretrained):
        with pytest.raises(ValueError, match=message):
            load(write(tmp_path, **values))


def test_a_grid_of_millions_is_refused_before_it_is_made(tmp_path):
    levels = {
        "token_keep": [(i + 1) / 1000 for i in range(1000)],
        "mlp_keep": [(i + 1) / 1000 for i in range(1000)],
        "bits": list(range(2, 17)),
    }
    write(tmp_path, **levels)
    begin, memory = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"would have 15,000,000 actions \(1,000 of `token_keep`"):
        AutoConfig.from_pretrained(tmp_path)
    assert time.perf_counter() - begin < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 50_000, "kilobytes"
    with pytest.raises(ValueError, match="15,000,000 actions"):
        ActionSpace(**levels)
    with pytest.raises(ValueError, match="`token_keep` must have at most 1,000 levels"):
        SOLConfig(token_keep=[(i + 1) / 5000 for i in range(5000)])


def test_a_config_that_was_changed_is_checked_before_it_is_written(tmp_path):
    config = SOLConfig(bits=[8, 16])
    config.page_size = 10**9
    with pytest.raises(ValueError, match="`page_size` must be at most"):
        config.save_pretrained(tmp_path)
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization_config", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
        ("attn_implementation", "somebody/kernel"),
        ("_attn_implementation", "somebody/kernel"),
        ("return_dict", False),
        ("is_encoder_decoder", True),
        ("transformers_weights", "../../other.safetensors"),
        ("custom_pipelines", {"text-generation": {"impl": "evil.Pipeline"}}),
        ("per_layer_config", {"0": {"hidden_size": 8}}),
        ("tie_word_embeddings", True),
    ],
)
def test_keys_that_are_not_the_policys_have_no_effect_and_are_named(tmp_path, caplog, key, value):
    with caplog.at_level("WARNING"):
        config = AutoConfig.from_pretrained(write(tmp_path, **{key: value}))
    assert getattr(config, key, None) != value
    assert f"'{key}'" in caplog.text


def test_code_of_another_repository_is_not_passed_on(tmp_path, caplog):
    classes = {"AutoConfig": "evil/repo--mine.Config", "AutoModel": "sol_remote.SOLPolicyModel"}
    with caplog.at_level("WARNING"):
        config = SOLConfig.from_pretrained(write(tmp_path, auto_map=classes))
    assert config.auto_map == {"AutoModel": "sol_remote.SOLPolicyModel"}
    assert "auto_map" in caplog.text


def test_the_config_of_a_language_model_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    with pytest.raises(ValueError, match=r"of type 'llama', not of a policy.*SOLForCausalLM\.from_base"):
        SOLConfig.from_pretrained(tmp_path)
