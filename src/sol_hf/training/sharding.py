# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Placement of a frozen base while its policy is trained: a copy on every device, or its layers sharded over all.

Sharding (FSDP2) is for a base that does not fit on one device. A layer is gathered when it runs and freed afterwards.
Embeddings, LM head and final norm are not sharded, because they are also used outside of the base's forward. The
policy is small and not sharded either: its gradients are averaged as usual. All processes have to run the base the
same number of times, which holds if they run equal parts of a batch of rollouts.
"""

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from ..execution.decoder_layers import decoder_layers


def place_base(base: PreTrainedModel, accelerator: Accelerator, shard: bool) -> None:
    """Move a frozen base to the accelerator's device, as a whole or as the shard of this process.

    Args:
        base (`PreTrainedModel`): The base, on any device. Sharding changes it in place and cannot be undone.
        accelerator (`Accelerator`): Accelerator of the run.
        shard (`bool`): Shard the layers over the processes.

    Raises:
        ValueError: if the run would shard the policy, there is only one process, or no layers are found.
    """
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        raise ValueError(
            f"`distributed_type: {accelerator.distributed_type.value}` would shard the policy, which is small: launch "
            "with MULTI_GPU (or MULTI_CPU), and `shard_base=True` if the base does not fit on one device."
        )
    if shard:
        shard_layers(base, accelerator.device)
    base.to(accelerator.device)


def shard_layers(base: PreTrainedModel, device: torch.device) -> None:
    """Shard the parameters of every layer over all processes, one layer after the other, with FSDP2."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        raise ValueError(
            "`shard_base=True` needs several processes: launch with `accelerate launch --num_processes N`, or leave "
            "the base whole."
        )
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = decoder_layers(base)
    if layers is None:
        raise ValueError(f"{type(base).__name__} has no list of decoder layers, so it cannot be sharded.")
    for layer in layers:
        sharded = fully_shard(layer, mesh=mesh, reshard_after_forward=True)
        sharded.unshard()  # else rollouts would allocate the buffers, as inference tensors
        sharded.reshard()
