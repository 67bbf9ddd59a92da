# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A folder of measurements: it is filled part by part, and measurements with other settings are refused."""

from dataclasses import replace

import pytest
import torch

from sol_hf.episodes import measurements
from sol_hf.episodes.counterfactuals import Probes
from sol_hf.episodes.measurements import Measurements
from support.cases import sol_model


CONTEXT, STEPS = 12, 5


@pytest.fixture
def wanted(tmp_path):
    model = sol_model("llama", torch.float32)
    probes = Probes.at(model.action_space, {"token_keep": [0.2], "bits": [3]})
    blocks = torch.randint(3, 99, (5, CONTEXT + STEPS + 1), generator=torch.Generator().manual_seed(2))
    return model, blocks, Measurements(tmp_path / "warmup", CONTEXT, probes, blocks_per_part=2, batch_size=2)


def test_all_blocks_are_measured_in_order(wanted):
    model, blocks, store = wanted
    found = store.collect(model, blocks)
    assert torch.equal(found.tokens, blocks[:, CONTEXT:-1])
    assert found.divergence.shape == (5, STEPS, 2) and found.hidden_states.dtype == torch.bfloat16
    assert sorted(path.name for path in store.folder.iterdir()) == [
        *(f"measured-0000{number}.safetensors" for number in range(3)),
        "settings.json",
    ]


def test_a_stopped_run_goes_on_and_ends_with_the_same(wanted, monkeypatch):
    model, blocks, store = wanted
    expected = store.collect(model, blocks)
    middle, last = (store.folder / f"measured-0000{number}.safetensors" for number in (1, 2))
    kept = last.stat().st_mtime_ns
    middle.unlink()
    calls = []
    real = measurements.measure
    monkeypatch.setattr(measurements, "measure", lambda *args: calls.append(1) or real(*args))
    again = store.collect(model, blocks)
    assert len(calls) == 1 and last.stat().st_mtime_ns == kept
    assert torch.equal(again.divergence, expected.divergence)
    assert torch.equal(again.next_actions, expected.next_actions)


def test_measurements_of_something_else_are_refused(wanted):
    model, blocks, store = wanted
    store.collect(model, blocks)
    with pytest.raises(ValueError, match="other text"):
        store.collect(model, blocks.flip(0))
    with pytest.raises(ValueError, match="another context_length"):
        replace(store, context_length=CONTEXT - 1).collect(model, blocks)
    with pytest.raises(ValueError, match="another probes"):
        replace(store, probes=Probes.of(model.action_space)).collect(model, blocks)


def test_levels_that_the_space_does_not_have_are_refused(wanted):
    model, _, _ = wanted
    with pytest.raises(ValueError, match="token_keep=0.25 is not a level"):
        Probes.at(model.action_space, {"token_keep": [0.25]})
    with pytest.raises(ValueError, match="no level to measure"):
        Probes.at(model.action_space, {"bits": []})
