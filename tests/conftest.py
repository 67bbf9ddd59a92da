# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Fixtures: the golden model, tiny bases built in code, offline environment."""

import json
import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("CI", "1")

import pytest  # noqa: E402
import torch  # noqa: E402


if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported: its kernels then run on CPU tensors

from safetensors.torch import load_file  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from sol_hf import SOLConfig, SOLForCausalLM  # noqa: E402
from support.extra_axis import mlp_noise  # noqa: E402, F401
from support.paths import DATA  # noqa: E402


GOLDEN = DATA / "golden"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def same_threads():
    """A test that sets the number of threads sets it for itself; two are slow where other tests run beside them."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def by_modules(monkeypatch):
    """Steps run by the modules of the base, never as one program."""
    monkeypatch.setattr("sol_hf.decoding.step.compiled_step", lambda *_: None)
    monkeypatch.setattr("sol_hf.decoding.base_forward.compiled_refresh", lambda *_: None)


@pytest.fixture(scope="session")
def golden_meta() -> dict:
    return json.loads((GOLDEN / "meta.json").read_text())


@pytest.fixture(scope="session")
def golden_vectors() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "vectors.safetensors")


@pytest.fixture(scope="session")
def golden_model(golden_meta):
    """Factory of the golden LM under the golden policy, `golden_model(criterion=..., episode_length=...)`."""

    def build(attn_implementation: str = "sdpa", **overrides) -> SOLForCausalLM:
        config = LlamaConfig(**golden_meta["lm"], attn_implementation=attn_implementation)
        base = LlamaForCausalLM(config).eval()
        base.load_state_dict(load_file(GOLDEN / "lm.safetensors"))
        policy = golden_meta["policy"]
        settings = dict(
            **golden_meta["axes"],
            page_size=golden_meta["page_size"],
            sink_tokens=golden_meta["sink_tokens"],
            window_tokens=golden_meta["window_tokens"],
            episode_length=golden_meta["episode_len"],
            policy_hidden_size=policy["d_model"],
            policy_num_layers=policy["n_layers"],
            policy_num_heads=policy["n_heads"],
            policy_mlp_ratio=policy["mlp_ratio"],
            action_embedding_size=policy["action_dim"],
        )
        model = SOLForCausalLM.from_base(base, SOLConfig(**{**settings, **overrides}))
        if model.config.episode_length <= policy["max_len"]:
            model.policy.load_published(load_file(GOLDEN / "policy.safetensors"))
        return model

    return build
