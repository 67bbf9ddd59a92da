# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policy network: whole episodes and single steps agree, loading of published weights, saving and loading."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, DynamicCache

from sol_hf import SOLConfig, SOLPolicyModel, SOLPolicyOutput


HIDDEN, EMBEDDING, STEPS, ROWS = 12, 10, 6, 3
SIZES = dict(
    token_keep=[0.2, 1.0],
    mlp_keep=[0.6, 1.0],
    bits=[8, 16],
    episode_length=STEPS,
    policy_hidden_size=16,
    policy_num_heads=2,
    policy_num_layers=2,
    action_embedding_size=4,
    base_hidden_size=HIDDEN,
    base_embedding_size=EMBEDDING,
)
PUBLISHED_NAMES = {
    "action_embedding.": "action_emb.",
    "position_embedding.": "pos_emb.",
    "scalar_features.": "scalar_proj.",
    "input_projection.": "obs_proj.",
    ".attention_norm.": ".ln1.",
    ".mlp_norm.": ".ln2.",
    ".attention.": ".attn.",
    ".mlp.": ".ff.",
    "layers.": "blocks.",
    "final_norm.": "ln_f.",
    "action_head.": "pi.",
    "value_head.": "v.",
}


def make_policy(**overrides) -> SOLPolicyModel:
    policy = SOLPolicyModel(SOLConfig(**{**SIZES, **overrides})).eval()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(std=0.3)
    return policy


def make_inputs(rows: int = ROWS, steps: int = STEPS) -> dict[str, torch.Tensor]:
    return dict(
        hidden_states=torch.randn(rows, steps, HIDDEN),
        token_embeddings=torch.randn(rows, steps, EMBEDDING),
        scalars=torch.randn(rows, steps, 8),
        previous_actions=torch.randint(9, (rows, steps)),
    )


def published(policy: SOLPolicyModel) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in policy.state_dict().items():
        for own, theirs in PUBLISHED_NAMES.items():
            name = name.replace(own, theirs)
        state[name] = tensor.clone()
    return state


@torch.no_grad()
def test_the_whole_sequence_is_step_by_step_with_a_cache():
    policy, inputs, cache = make_policy(), make_inputs(), DynamicCache()
    whole = policy(**inputs).logits
    assert whole.shape == (ROWS, STEPS, 8)
    for step in range(STEPS):
        here = {name: tensor[:, step : step + 1] for name, tensor in inputs.items()}
        output = policy(**here, past_key_values=cache)
        assert output.past_key_values is cache
        assert cache.get_seq_length() == step + 1
        torch.testing.assert_close(output.logits[:, 0], whole[:, step], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("first", range(1, STEPS))
def test_the_whole_sequence_is_two_pieces_with_a_cache(first):
    policy, inputs = make_policy(), make_inputs()
    head = policy(**{name: tensor[:, :first] for name, tensor in inputs.items()}, use_cache=True)
    tail = policy(**{n: x[:, first:] for n, x in inputs.items()}, past_key_values=head.past_key_values)
    torch.testing.assert_close(torch.cat([head.logits, tail.logits], 1), policy(**inputs).logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("changed", ["hidden_states", "token_embeddings", "scalars", "previous_actions"])
def test_a_step_sees_itself_and_earlier_ones_only(changed):
    policy, inputs = make_policy(), make_inputs()
    before = policy(**inputs).logits
    other = inputs[changed].clone()
    other[1, 3] = (other[1, 3] + 1) % 9
    after = policy(**{**inputs, changed: other}).logits
    torch.testing.assert_close(after[[0, 2]], before[[0, 2]], atol=1e-6, rtol=0)
    torch.testing.assert_close(after[1, :3], before[1, :3], atol=1e-6, rtol=0)
    assert ((after[1, 3:] - before[1, 3:]).abs().amax(-1) > 1e-4).all()


@torch.no_grad()
def test_the_budget_reaches_the_logits_directly():
    policy, inputs = make_policy(), make_inputs()
    for parameter in (*policy.action_head.parameters(),):
        parameter.zero_()
    targets = inputs["scalars"][..., 2:5]
    torch.testing.assert_close(policy(**inputs).logits, policy.budget_head(targets))


@torch.no_grad()
def test_the_fill_of_the_page_is_seen_by_those_that_asked_for_it():
    inputs, fill = make_inputs(), torch.randint(1, 8, (ROWS, STEPS, 1)) / 8
    told = {**inputs, "scalars": torch.cat([inputs["scalars"], fill], dim=-1)}
    policy = make_policy()
    assert torch.equal(policy(**told).logits, policy(**inputs).logits)
    policy = make_policy(observe_page_fill=True)
    other = {**inputs, "scalars": torch.cat([inputs["scalars"], fill + 1 / 8], dim=-1)}
    assert (policy(**told).logits - policy(**other).logits).abs().max() > 1e-3
    with pytest.raises(ValueError, match="`observe_page_fill` needs pages"):
        make_policy(observe_page_fill=True, criterion="recency")


@torch.no_grad()
def test_an_episode_has_no_more_steps_than_the_config_says():
    policy, inputs = make_policy(), make_inputs(steps=STEPS + 1)
    with pytest.raises(ValueError, match=f"{STEPS + 1} steps do not fit an episode of {STEPS}"):
        policy(**inputs)
    cache = policy(**{name: tensor[:, :STEPS] for name, tensor in inputs.items()}, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=f"{STEPS + 1} steps do not fit"):
        policy(**{name: tensor[:, :1] for name, tensor in inputs.items()}, past_key_values=cache)


@torch.no_grad()
def test_output_types():
    policy, inputs = make_policy(), make_inputs()
    output = policy(**inputs)
    assert isinstance(output, SOLPolicyOutput)
    assert output.past_key_values is None
    assert policy(**inputs, use_cache=True).past_key_values.get_seq_length() == STEPS
    (logits,) = policy(**inputs, return_dict=False)
    assert torch.equal(logits, output.logits)


@torch.no_grad()
def test_a_policy_in_bfloat16_takes_what_the_base_gives():
    policy, inputs = make_policy().bfloat16(), make_inputs()
    logits = policy(**inputs).logits
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), make_like(policy)(**inputs).logits, atol=0.3, rtol=0.1)


def make_like(policy: SOLPolicyModel) -> SOLPolicyModel:
    copy = SOLPolicyModel(policy.config).eval()
    copy.load_state_dict({name: tensor.float() for name, tensor in policy.state_dict().items()})
    return copy


def test_every_parameter_but_the_value_head_gets_a_gradient():
    policy = make_policy()
    policy(**make_inputs()).logits.logsumexp(-1).sum().backward()
    without = {name for name, parameter in policy.named_parameters() if parameter.grad is None}
    assert without == {"value_head.weight", "value_head.bias"}


@pytest.mark.parametrize("field", ["base_hidden_size", "base_embedding_size"])
def test_sizes_of_the_base_are_needed(field):
    with pytest.raises(ValueError, match="SOLForCausalLM.from_base fills them in"):
        SOLPolicyModel(SOLConfig(**{**SIZES, field: None}))


@torch.no_grad()
def test_published_names_map_to_every_parameter():
    source, target, inputs = make_policy(), make_policy(), make_inputs()
    assert not torch.allclose(source(**inputs).logits, target(**inputs).logits)
    assert target.load_published(published(source)) is target
    assert torch.equal(source(**inputs).logits, target(**inputs).logits)
    assert torch.equal(source.value_head.weight, target.value_head.weight)


@torch.no_grad()
def test_a_longer_published_position_table_is_cut():
    source, target = make_policy(episode_length=STEPS + 3), make_policy()
    target.load_published(published(source))
    assert torch.equal(target.position_embedding.weight, source.position_embedding.weight[:STEPS])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("pi.weight"), "missing action_head.weight"),
        (lambda state: state.update(surplus=torch.zeros(1)), "unknown surplus"),
        (
            lambda state: state.update({"pi.bias": torch.zeros(5)}),
            r"action_head.bias has shape \(5,\), expected",
        ),
        (lambda state: state.update({"pos_emb.weight": torch.zeros(2, 16)}), r"position_embedding.weight has shape"),
    ],
)
def test_published_weights_that_do_not_fit_are_refused(change, message):
    policy = make_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    state = published(make_policy())
    change(state)
    with pytest.raises(ValueError, match=message):
        policy.load_published(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())


@torch.no_grad()
@pytest.mark.parametrize("model_class", [SOLPolicyModel, AutoModel])
def test_save_and_load(tmp_path, model_class):
    policy, inputs = make_policy(), make_inputs()
    policy.save_pretrained(tmp_path)
    assert set(load_file(tmp_path / "model.safetensors")) == set(policy.state_dict())
    loaded, info = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SOLPolicyModel
    assert not loaded.training
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(loaded(**inputs).logits, policy(**inputs).logits)


def test_fresh_weights_follow_the_initializer_range():
    narrow = SOLPolicyModel(SOLConfig(**{**SIZES, "initializer_range": 0.001}))
    wide = SOLPolicyModel(SOLConfig(**{**SIZES, "initializer_range": 0.5}))
    assert narrow.input_projection.weight.std() < 0.002
    assert 0.4 < wide.input_projection.weight.std() < 0.6
