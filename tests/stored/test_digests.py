# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""By which stored results are told from those of another model."""

import pytest
import torch
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

from sol_hf import SOLConfig
from sol_hf.stored.digests import config_digest, sampled_digest, weights_digest
from support.bases import tiny_base


class Module(nn.Module):
    """A plain weight, a weight of two parts (as quantized ones have), a saved buffer and one that is not saved."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Parameter(torch.ones(3, 5))
        self.parts = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.ones(2, 2)), requires_grad=False)
        self.register_buffer("saved", torch.ones(4))
        self.register_buffer("derived", torch.ones(4), persistent=False)


CHANGES = {
    "a number": lambda module: module.plain.data[2, 3].add_(1e-6),
    "a part of a weight": lambda module: module.parts.data.b[1, 1].add_(1),
    "a saved buffer": lambda module: module.saved[2].add_(1),
    "the type": lambda module: module.double(),
    "the name": lambda module: setattr(module, "other", module._parameters.pop("plain")),
}


@pytest.mark.parametrize("digest", [weights_digest, sampled_digest])
class TestBoth:
    @pytest.mark.parametrize("what", list(CHANGES))
    def test_a_change_of_what_is_saved_is_seen(self, digest, what):
        module = Module()
        was = digest(module)
        assert was == digest(Module())
        CHANGES[what](module)
        assert digest(module) != was

    def test_what_follows_from_the_config_does_not_count(self, digest):
        module = Module()
        was = digest(module)
        module.derived.zero_()
        assert digest(module) == was

    def test_a_number_of_a_large_weight(self, digest):
        module = nn.Linear(400, 400, dtype=torch.bfloat16)
        was = digest(module)
        module.weight.data[123, 321] = 0.5
        assert digest(module) != was

    def test_values_and_types_of_a_base(self, digest):
        base = tiny_base("llama")
        assert digest(base) == digest(tiny_base("llama")) != digest(tiny_base("llama", torch.float64))


def test_of_offloaded_weights_only_the_form_is_known():
    module = nn.Linear(4, 4).to("meta")
    assert sampled_digest(module) == sampled_digest(nn.Linear(4, 4).to("meta"))
    assert sampled_digest(module) != sampled_digest(nn.Linear(4, 5).to("meta"))
    with pytest.raises(ValueError, match="weights of bias are offloaded"):
        weights_digest(module)


def test_a_calibration_table_does_not_count():
    table = [dict(net_keep=0.5, token_keep=0.6, mlp_keep=0.6, bits=6, log_perplexity=3.0)]
    assert config_digest(SOLConfig(calibration=table)) == config_digest(SOLConfig())
    assert config_digest(SOLConfig(window_tokens=3)) != config_digest(SOLConfig())
