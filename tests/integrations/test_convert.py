# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Checkpoints as published with the method become folders of policies: golden weights give golden logits."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from sol_hf import SOLForCausalLM, SOLPolicyModel, convert_checkpoint
from support.paths import TESTS


GOLDEN = TESTS / "data" / "golden"
META = json.loads((GOLDEN / "meta.json").read_text())
TEMPERATURE = 1.3


class Evil:
    """Runs code when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bases") / "golden"
    model = LlamaForCausalLM(LlamaConfig(**META["lm"]))
    model.load_state_dict(load_file(GOLDEN / "lm.safetensors"))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "policy.safetensors")


def checkpoint(folder, weights, cfg=META["policy"], name="policy_latest.pt", **further):
    path = folder / name
    torch.save({"policy_state_dict": weights, "cfg": cfg, "step": 3, **further}, path)
    return path


def settings(folder, **values):
    path = folder / "config.yml"
    known = {**META["axes"], "page_size": 4, "episode_len": 12}
    path.write_text(yaml.safe_dump({"run": "a name", "env": {**known, **values}}))
    return path


def test_golden_weights_give_golden_logits(tmp_path, base, weights):
    out = tmp_path / "policy"
    config = convert_checkpoint(checkpoint(tmp_path, weights), settings(tmp_path), base, out)
    assert (config.page_size, config.episode_length, config.policy_num_heads, len(config.action_space)) == (
        4,
        12,
        2,
        60,
    )
    vectors = load_file(GOLDEN / "vectors.safetensors")
    names = "hidden embed scalars prev_actions".split()
    inputs = [vectors[f"policy.{name}"].transpose(0, 1) for name in names]
    with torch.no_grad():
        logits = SOLPolicyModel.from_pretrained(out)(*inputs).logits
    torch.testing.assert_close(
        logits.transpose(0, 1) / TEMPERATURE, vectors["policy.logits_temp1.3"], atol=1e-4, rtol=0
    )


def test_the_folder_is_a_policy_that_controls_the_base(tmp_path, base, weights):
    out = tmp_path / "policy"
    loaded = LlamaForCausalLM.from_pretrained(base).eval()
    convert_checkpoint(checkpoint(tmp_path, weights), settings(tmp_path), loaded, out)
    model = SOLForCausalLM.from_pretrained(out, base=loaded)
    assert model.config.base_fingerprint is not None
    output = model.generate(
        torch.arange(1, 20)[None], max_new_tokens=6, token_keep=0.5, return_dict_in_generate=True, pad_token_id=0
    )
    assert output.realised[0, 0] <= 0.6
    assert {"config.json", "model.safetensors", "README.md", "sol_remote.py"} <= {path.name for path in out.iterdir()}


@pytest.mark.parametrize(
    ("cfg", "prefix", "values"),
    [
        ({"policy": META["policy"], "seed": 1}, "", {}),
        ({}, "module.", {"n_heads": 2}),
        (META["policy"], "_orig_mod.module.", {"token_keep": ["k010", "k025", "k050", "k075", "k100"]}),
        (META["policy"], "", {"mlp_keep": ["s40", "s60", "s80", "s100"], "bits": ["q5", "q8", "q16"]}),
    ],
)
def test_it_understands_what_others_write(tmp_path, base, weights, cfg, prefix, values):
    wrapped = {prefix + name: tensor for name, tensor in weights.items()}
    config = convert_checkpoint(
        checkpoint(tmp_path, wrapped, cfg), settings(tmp_path, **values), base, tmp_path / "out"
    )
    assert config.action_space.levels == {axis: tuple(levels) for axis, levels in META["axes"].items()}


def test_the_full_grid_has_a_name(tmp_path, base, weights):
    with pytest.raises(ValueError, match="has 60 actions, but the levels give 1560"):
        convert_checkpoint(checkpoint(tmp_path, weights), {"action_space": "FL"}, base, tmp_path / "out")


def test_no_code_in_a_checkpoint_runs(tmp_path, base, weights):
    marker = tmp_path / "was-run"
    for further in ({"optimizer": Evil(str(marker))}, {"cfg": Evil(str(marker))}):
        path = checkpoint(tmp_path, weights, **further)
        with pytest.raises(ValueError, match="could run code, so they are not loaded.*torch.save"):
            convert_checkpoint(path, settings(tmp_path), base, tmp_path / "out")
    assert not marker.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.pop("policy_state_dict"), "has no `policy_state_dict`, but 'cfg', 'step'"),
        (
            lambda content: content["policy_state_dict"]["pi.bias"].fill_(torch.nan),
            "weight pi.bias is NaN or infinite",
        ),
        (
            lambda content: content["policy_state_dict"].pop("obs_proj.weight"),
            "is not of the published policy network",
        ),
        (lambda content: content["policy_state_dict"].pop("pi.bias"), "missing action_head.bias"),
        (lambda content: content["policy_state_dict"].update(x=torch.ones(1)), "unknown x"),
        (lambda content: content["policy_state_dict"].update({"pi.bias": "text"}), "'pi.bias', which is not a tensor"),
        (lambda content: content["cfg"].pop("n_heads"), "add `n_heads` to the YAML file"),
        (lambda content: content["cfg"].update(other={"n_heads": 4}), "has several values of .*n_heads.*: 2, 4"),
    ],
)
def test_a_checkpoint_of_another_kind_is_refused(tmp_path, base, weights, change, message):
    content = {
        "policy_state_dict": {name: tensor.clone() for name, tensor in weights.items()},
        "cfg": dict(META["policy"]),
        "step": 3,
    }
    change(content)
    torch.save(content, tmp_path / "policy.pt")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "policy.pt", settings(tmp_path), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bits": None}, "The levels of bits are nowhere in the config and `cfg` of .*token_keep: "),
        ({"bits": None, "action_space": "XL"}, "The action space 'XL' is not known by name"),
        ({"bits": [8, 16]}, r"has 60 actions, but the levels give 40 \(5 `token_keep` x 4 `mlp_keep` x 2 `bits`\)"),
        ({"bits": "8-16"}, "`bits` must be a list of levels"),
        ({"bits": [5, 8, 99]}, "`bits` must lie in 2..16"),
        ({"episode_len": 99}, "has 64 positions, fewer than the 99 steps"),
        ({"page_size": "many"}, "page_size"),
    ],
)
def test_a_config_that_does_not_fit_says_what_to_write(tmp_path, base, weights, values, message):
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(checkpoint(tmp_path, weights), settings(tmp_path, **values), base, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_missing_or_damaged_are_named(tmp_path, base, weights):
    good, config = checkpoint(tmp_path, weights), settings(tmp_path)
    cut = tmp_path / "cut.pt"
    cut.write_bytes(good.read_bytes()[:-3000])
    (tmp_path / "list.yml").write_text("- 1\n")
    (tmp_path / "broken.yml").write_text("a: [1")
    (tmp_path / "tagged.yml").write_text("a: !!python/object/apply:os.getcwd []\n")
    for arguments, kind, message in [
        ((tmp_path / "none.pt", config), FileNotFoundError, "no checkpoint .*none.pt"),
        ((good, tmp_path / "none.yml"), FileNotFoundError, "no config .*none.yml"),
        ((cut, config), ValueError, "cut.pt"),
        ((config, config), ValueError, "is no torch file"),
        ((good, tmp_path / "list.yml"), ValueError, "must hold a mapping, but holds a list"),
        ((good, tmp_path / "broken.yml"), ValueError, "broken.yml is damaged"),
        ((good, tmp_path / "tagged.yml"), ValueError, "tagged.yml is damaged"),
    ]:
        with pytest.raises(kind, match=message):
            convert_checkpoint(*arguments, base, tmp_path / "out")


def test_another_base_is_refused(tmp_path, base, weights):
    other = tmp_path / "other"
    shape = json.loads((base / "config.json").read_text()) | {"hidden_size": 48}
    other.mkdir()
    (other / "config.json").write_text(json.dumps(shape))
    with pytest.raises(ValueError, match="have 64 numbers together, but those of this base have 96"):
        convert_checkpoint(checkpoint(tmp_path, weights), settings(tmp_path), other, tmp_path / "out")
