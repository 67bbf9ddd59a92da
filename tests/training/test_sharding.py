# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Where a base is placed in one process; in several, see test_distributed.py."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import DistributedType

from sol_hf.training.sharding import place_base
from support.bases import tiny_base


def accelerator(kind: DistributedType = DistributedType.NO, device: str = "cpu") -> SimpleNamespace:
    return SimpleNamespace(distributed_type=kind, device=torch.device(device))


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
