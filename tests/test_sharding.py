# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Where a base is placed in one process; in several, see test_distributed.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from bases import FAMILIES, tiny_base
from sol_hf.sharding import find_layers, place_base


def accelerator(kind: DistributedType = DistributedType.NO, device: str = "cpu") -> SimpleNamespace:
    return SimpleNamespace(distributed_type=kind, device=torch.device(device))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_layers_of_every_family_are_found(family):
    layers = find_layers(tiny_base(family))
    assert len(layers) == 2 and type(layers[0]) is type(layers[1])


def test_a_base_without_named_layers_is_refused():
    base = tiny_base("llama")
    base._no_split_modules = None
    with pytest.raises(ValueError, match="LlamaForCausalLM names no layers"):
        find_layers(base)


def test_a_base_is_moved_to_the_device():
    base = tiny_base("llama")
    place_base(base, accelerator(device="meta"), shard=False)
    assert {parameter.device.type for parameter in base.parameters()} == {"meta"}


def test_one_process_has_nothing_to_shard_over():
    with pytest.raises(ValueError, match="`shard_base=True` needs several processes"):
        place_base(tiny_base("llama"), accelerator(), shard=True)


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_a_launch_that_would_shard_the_policy_is_refused(kind):
    with pytest.raises(ValueError, match="would shard the policy"):
        place_base(tiny_base("llama"), accelerator(kind), shard=True)
