# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Budgets, controllers that want to break them, and the package's own step loop on a base without weights."""

import torch
from hypothesis import strategies as st
from torch import nn
from transformers import GenerationConfig, LlamaConfig
from transformers.modeling_outputs import CausalLMOutputWithPast

from sol_hf import (
    ActionSpace,
    Budget,
    Controller,
    PolicyController,
    SOLCache,
    SOLConfig,
    SOLPolicyModel,
)
from sol_hf.decoding.forward_inputs import ForwardInputs
from sol_hf.decoding.options import resolve_options
from sol_hf.decoding.session import DecodingSession
from sol_hf.decoding.step import decode_forward
from sol_hf.execution.plan import ACTIVE


HIDDEN, ROWS = 4, 16
CONFIG = LlamaConfig(num_hidden_layers=1, hidden_size=HIDDEN, num_attention_heads=1, vocab_size=8)


class EmptyBase(nn.Module):
    """A base that computes nothing: it fills the cache and returns noise as hidden state."""

    def __init__(self):
        super().__init__()
        self.embeddings = nn.Embedding(8, HIDDEN)

    def get_input_embeddings(self):
        return self.embeddings

    def get_output_embeddings(self):
        return self.embeddings

    def get_decoder(self):
        return self

    def forward(self, input_ids, past_key_values, attention_mask=None, use_cache=True, return_dict=True):
        nothing = torch.zeros(*input_ids.shape, 1)[:, None]
        past_key_values.update(nothing, nothing, 0)
        ACTIVE.get().hidden_states = torch.randn(len(input_ids), 1, HIDDEN)
        return CausalLMOutputWithPast(logits=torch.zeros(len(input_ids), 1, 8), past_key_values=past_key_values)


class Adversary(Controller):
    """Scores actions by the rule of its name, on ratios summed over the axes (`one_axis`: the first axis only)."""

    def __init__(self, wish: str):
        self.wish = wish

    def __call__(self, observation):
        ratios = observation.action_space.ratios
        cost, noise = ratios.sum(-1), torch.randn(observation.rows, len(ratios))
        dear = {
            "dearest": 1.0,
            "cheapest": -1.0,
            "cheap then dear": 1.0 if observation.step >= observation.episode_length // 2 else -1.0,
            "dear then cheap": -1.0 if observation.step >= observation.episode_length // 2 else 1.0,
            "alternating": 1.0 if observation.step % 2 else -1.0,
        }
        if self.wish == "random":
            return noise * 100
        if self.wish == "one axis":
            return ratios[:, observation.step % ratios.shape[1]] * 50 + noise
        return (dear[self.wish] * cost * 100).expand(observation.rows, -1)


def policy_controller(space: ActionSpace, episode_length: int) -> PolicyController:
    levels = {axis: list(values) for axis, values in space.levels.items()}
    sizes = dict(policy_hidden_size=8, policy_num_heads=1, base_hidden_size=HIDDEN, base_embedding_size=HIDDEN)
    policy = SOLPolicyModel(SOLConfig(**levels, **sizes, episode_length=episode_length)).eval()
    for parameter in policy.parameters():
        parameter.data.normal_()
    return PolicyController(policy)


WISHES = ["random", "dearest", "cheapest", "cheap then dear", "dear then cheap", "alternating", "one axis", "policy"]


@st.composite
def spaces(draw) -> ActionSpace:
    """Random levels in random order; sometimes the published grids, sometimes without a dense level."""
    percents = st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True)
    token_keep, mlp_keep = ([p / 100 for p in draw(percents)] for _ in range(2))
    bits = draw(st.lists(st.integers(2, 16), min_size=1, max_size=4, unique=True))
    if draw(st.booleans()):
        token_keep, mlp_keep, bits = (
            levels + [top] * (top not in levels) for levels, top in ((token_keep, 1.0), (mlp_keep, 1.0), (bits, 16))
        )
    return ActionSpace(token_keep, mlp_keep, bits)


@st.composite
def budgets(draw, space: ActionSpace) -> Budget:
    """Per axis `None` where it may stay dense, else a target per row: anything, a level, an edge."""
    targets = {}
    for axis in space.axes:
        levels = space.levels[axis.name]
        if max(levels) == axis.dense and draw(st.integers(0, 3)) == 0:
            continue
        least, top = min(levels), axis.dense
        anything = st.floats(least, top, allow_nan=False)
        chosen = st.one_of(anything, anything, st.sampled_from([*levels, least, max(levels), top]))
        targets[axis.name] = [max(float(draw(chosen)), least) for _ in range(ROWS)]
    return Budget(**targets)


def simulate(
    space, budget, controller, episode_length, steps, padding, prompt, sink, window, sample, **options
) -> SOLCache:
    """Decode `steps` steps after a prompt on the empty base, in hard mode, through the package's own loop."""
    config = SOLConfig(
        **{axis: list(levels) for axis, levels in space.levels.items()},
        episode_length=episode_length,
        sink_tokens=sink,
        window_tokens=window,
    )
    budget.check(space, ROWS)
    given = {"budget": budget, "do_sample_actions": sample, **options}
    controls = resolve_options(given, None, GenerationConfig()).controls(controller, config)
    base, cache = EmptyBase(), SOLCache(CONFIG, space)
    session = DecodingSession(base, cache, controls, decode_from=prompt).begin()
    session.steps = steps if controls.is_exact else None
    session.parts = {}  # of which the empty base has none
    tokens = torch.ones(ROWS, prompt + steps, dtype=torch.long)
    session.set_up_rows(ROWS, tokens.device)
    cache.set_padding(torch.tensor(padding))
    for end in range(prompt + 1, prompt + steps + 1):
        begin = 0 if end == prompt + 1 else end - 1
        decode_forward(session, ForwardInputs(tokens[:, begin:end]), all_logits=False)
    return cache
