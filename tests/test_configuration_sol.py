# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The configuration: published defaults, error messages, and files of other versions."""

import json
import logging
from dataclasses import replace

import pytest
from transformers import AutoConfig

from sol_hf import ActionSpace, SOLConfig
from sol_hf.decoding.option_names import STORED_DEFAULTS, UNSTORED
from sol_hf.selection.rule import SelectionRule
from support.extra_axis import FOUR_LEVELS, MLP_NOISE, registered


TAKEN = sorted({"compute", *STORED_DEFAULTS, *UNSTORED})
"""Budget options of `generate`."""


@pytest.fixture
def messages():
    """What transformers' logger emits within a test."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("transformers", "sol_hf")]
    for logger in loggers:
        logger.addHandler(handler)
    yield records
    for logger in loggers:
        logger.removeHandler(handler)


def test_defaults_are_the_published_setting():
    config = SOLConfig()
    assert config.token_keep == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    assert config.mlp_keep == [0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]
    assert config.bits == list(range(5, 17))
    assert len(config.action_space) == 1560
    assert config.selection_rule == SelectionRule("quest", 8, "head", 4, 2)
    assert config.episode_length == 16
    assert (config.policy_num_layers, config.policy_hidden_size, config.policy_num_heads) == (1, 512, 4)
    assert (config.action_embedding_size, config.policy_mlp_ratio) == (32, 4.0)


def test_action_space_and_rule_follow_the_fields():
    config = SOLConfig(
        token_keep=[0.2, 1],
        mlp_keep=[0.5, 1.0],
        bits=[8, 16],
        criterion="recency",
        page_size=3,
        page_selection="group",
        sink_tokens=0,
        window_tokens=7,
    )
    assert config.action_space == ActionSpace([0.2, 1.0], [0.5, 1.0], [8, 16])
    assert config.selection_rule == SelectionRule("recency", 3, "group", 0, 7)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("criterion", "quests", "Unknown criterion 'quests': it must be one of .*. Did you mean 'quest'"),
        ("selection", "heads", "`selection` must be one of head, group with the criterion `quest`, got 'heads'"),
        ("page_selection", "layer", "`selection` must be one of head, group with the criterion `quest`, got 'layer'"),
        ("page_selection", 3, "`selection` must be a string, got 3."),
        ("page_size", 0, "`page_size` must be at least 1, got 0"),
        ("episode_length", 0, "`episode_length` must be at least 1"),
        ("policy_hidden_size", 0, "`policy_hidden_size` must be at least 1"),
        ("policy_num_layers", 0, "`policy_num_layers` must be at least 1"),
        ("policy_num_heads", -1, "`policy_num_heads` must be at least 1"),
        ("policy_num_heads", 3, r"`policy_hidden_size` \(512\) must be a multiple of `policy_num_heads` \(3\)"),
        ("sink_tokens", -1, "cannot be negative"),
        ("window_tokens", -1, "cannot be negative"),
        ("token_keep", [0.5, 0.5], "`token_keep` has a repeated level"),
        ("mlp_keep", [0.0, 1.0], "`mlp_keep` must lie in"),
        ("bits", [1, 16], "`bits` must lie in"),
    ],
)
def test_wrong_values_are_refused_by_name(field, value, message):
    with pytest.raises(ValueError, match=message):
        SOLConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"), [("page_size", "8"), ("bits", [8.5]), ("criterion", 3), ("token_keep", 1)]
)
def test_wrong_types_are_refused_by_name(field, value):
    with pytest.raises(Exception, match=field):
        SOLConfig(**{field: value})


def test_the_former_name_of_a_field():
    config = SOLConfig(page_selection="group")
    assert config.selection == config.page_selection == "group" and "page_selection" not in config.to_dict()
    loaded = SOLConfig.from_dict({"model_type": "sol", "page_selection": "group"})
    assert loaded.selection_rule.selection == "group"
    with pytest.raises(ValueError, match="`page_selection` is the former name of `selection`: give one of them"):
        SOLConfig(selection="group", page_selection="head")


def test_anchored_pages_need_pages():
    assert SOLConfig(anchor_pages=True).selection_rule.anchor_pages
    with pytest.raises(ValueError, match="`anchor_pages` needs pages, as criterion `quest` has, got 'recency'"):
        SOLConfig(anchor_pages=True, criterion="recency")


def test_a_misspelt_field_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"`pagesize` \(did you mean `page_size`\?\)"):
        SOLConfig(pagesize=4)
    with pytest.raises(ValueError, match="SOLConfig has no field `zzzz`"):
        SOLConfig(zzzz=4)


def test_save_and_load(tmp_path, messages):
    config = SOLConfig(token_keep=[0.2, 1.0], bits=[8, 16], page_size=5, base_model_name_or_path="user/base")
    config.save_pretrained(tmp_path)
    loaded = SOLConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.action_space == config.action_space
    assert type(AutoConfig.from_pretrained(tmp_path)) is SOLConfig
    assert messages == []


def test_an_unknown_key_of_a_file_is_dropped_with_one_warning(tmp_path, messages):
    SOLConfig(page_size=5).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"from_the_future": 1, "sol_hf_version": "9.9"}))
    config = SOLConfig.from_pretrained(tmp_path)
    assert config.page_size == 5
    assert not hasattr(config, "from_the_future")
    assert len(messages) == 1
    assert "'from_the_future'" in messages[0]
    assert "written by sol_hf 9.9" in messages[0]


def test_from_dict_leaves_its_argument_alone():
    stored = SOLConfig().to_dict() | {"from_the_future": 1}
    before = dict(stored)
    SOLConfig.from_dict(stored)
    assert stored == before


def test_round_trip_through_json_and_copies_are_independent():
    config = SOLConfig(bits=[8, 16])
    again = SOLConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
    assert again.to_dict() == config.to_dict()
    again.bits.append(4)
    assert config.bits == [8, 16]
    assert SOLConfig().bits is not SOLConfig().bits


PUBLISHED = ["token_keep", "mlp_keep", "bits"]


@pytest.mark.usefixtures("mlp_noise")
class TestAddedAxis:
    def test_it_is_a_keyword_and_an_attribute(self):
        config = SOLConfig(bits=[8, 16], mlp_noise=(0.5, 1))
        assert config.mlp_noise == [0.5, 1.0]
        assert config.axes == [*PUBLISHED, "mlp_noise"]
        assert config.action_space == ActionSpace(config.token_keep, config.mlp_keep, [8, 16], mlp_noise=[0.5, 1.0])
        assert "mlp_noise" in SOLConfig.known_keys()

    def test_levels_of_its_own_where_only_its_name_is_given(self):
        assert SOLConfig(axes=[*PUBLISHED, "mlp_noise"]).mlp_noise == list(MLP_NOISE.default_levels)

    @pytest.mark.parametrize("values", [{}, {"mlp_noise": None}, {"axes": PUBLISHED}])
    def test_without_levels_the_config_is_the_published_one(self, values):
        config = SOLConfig(**values)
        assert config.axes is None and not hasattr(config, "mlp_noise")
        assert config == SOLConfig()

    def test_whole_numbers_stay_whole(self):
        with registered(replace(MLP_NOISE, name="rank", dense=8, lowest=1, scale=8, is_integral=True)):
            config = SOLConfig(rank=[2, 8])
            assert json.loads(config.to_json_string())["rank"] == [2, 8]
            assert all(type(level) is int for level in config.rank)

    @pytest.mark.parametrize(
        ("values", "message"),
        [
            ({"mlp_noise": [0.0, 1.0]}, r"`mlp_noise` must lie in \(0, 1\], got 0.0"),
            ({"mlp_noise": []}, "`mlp_noise` needs at least one level"),
            ({"mlp_noise": 0.5}, "`mlp_noise` must be a list of numbers, got 0.5"),
            ({"mlp_noise": ["half"]}, "`mlp_noise` must be a list of numbers"),
            ({"mlp_noise": [True]}, "`mlp_noise` must be a list of numbers"),
            ({"mlp_noize": [0.5]}, r"`mlp_noize` \(did you mean `mlp_noise`\?\)"),
            (
                {"axes": PUBLISHED, "mlp_noise": [0.5]},
                "levels of mlp_noise, but `axes` names only token_keep",
            ),
            ({"axes": ["mlp_noise", *PUBLISHED]}, "`axes` must begin with token_keep, mlp_keep, bits"),
            ({"axes": [*PUBLISHED[:2], "mlp_noise"]}, "`axes` must begin with token_keep, mlp_keep, bits"),
            ({"axes": [*PUBLISHED, "mlp_noise", "mlp_noise"]}, "name every axis once"),
            ({"axes": [*PUBLISHED, "mlp_nose"]}, "axis `mlp_nose`, which is not registered"),
        ],
    )
    def test_wrong_values_are_refused_by_name(self, values, message):
        with pytest.raises(ValueError, match=message):
            SOLConfig(**values)

    @pytest.mark.parametrize("name", ["page_size", "temperature", "streamer", "rows", "return_logits", *TAKEN])
    def test_its_name_must_not_be_another_options(self, name):
        with (
            registered(replace(MLP_NOISE, name=name)),
            pytest.raises(ValueError, match=f"An axis cannot be named `{name}`"),
        ):
            SOLConfig(axes=[*PUBLISHED, name])

    def test_save_and_load(self, tmp_path, messages):
        config = SOLConfig(**{**FOUR_LEVELS, "mlp_noise": [0.25, 1.0]}, page_size=5)
        config.save_pretrained(tmp_path)
        written = json.loads((tmp_path / "config.json").read_text())
        assert written["axes"] == [*PUBLISHED, "mlp_noise"] and written["mlp_noise"] == [0.25, 1.0]
        loaded, auto = SOLConfig.from_pretrained(tmp_path), AutoConfig.from_pretrained(tmp_path)
        assert loaded.to_dict() == config.to_dict() and auto.to_diff_dict() == config.to_diff_dict()
        assert loaded.action_space == auto.action_space == config.action_space
        again = SOLConfig.from_dict(json.loads(config.to_json_string(use_diff=False)))
        assert again.action_space == config.action_space
        again.mlp_noise.append(0.5)
        assert config.mlp_noise == [0.25, 1.0]
        assert messages == []


@pytest.mark.parametrize("load", [SOLConfig.from_pretrained, AutoConfig.from_pretrained])
def test_a_stored_axis_that_is_not_registered_is_named(tmp_path, messages, load):
    with registered():
        SOLConfig(mlp_noise=[0.5, 1.0]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="axis `mlp_noise`, which is not registered: import the package that"):
        load(tmp_path)
    assert messages == []
    with pytest.raises(ValueError, match="SOLConfig has no field `mlp_noise`"):
        SOLConfig(mlp_noise=[0.5, 1.0])


def test_files_of_the_published_axes_do_not_name_them(tmp_path):
    SOLConfig(bits=[8, 16]).save_pretrained(tmp_path)
    assert "axes" not in json.loads((tmp_path / "config.json").read_text())
    assert "axes" not in json.loads(SOLConfig().to_json_string(use_diff=False))
    assert SOLConfig.from_pretrained(tmp_path).axes is None
