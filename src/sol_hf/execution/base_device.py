# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The device on which a base computes, also if its weights are elsewhere between two forwards."""

import torch
from transformers import PreTrainedModel


def compute_device(base: PreTrainedModel) -> torch.device:
    """The device of a base. Of a base that accelerate offloads, it is the one that the weights are moved to.

    Raises:
        ValueError: if the weights of the base were never loaded.
    """
    device = device_of(base)
    if device.type == "meta":
        raise ValueError(f"{type(base).__name__} is on the meta device, without weights: load it first.")
    return device


def device_of(base: PreTrainedModel) -> torch.device:
    """The device of a base, as of [`compute_device`]; the meta device if its weights were never loaded."""
    if base.device.type == "meta":
        for module in base.modules():
            hook = getattr(module, "_hf_hook", None)
            for part in getattr(hook, "hooks", [hook]):
                device = getattr(part, "execution_device", None)
                if device is not None:
                    return torch.device(device)
    return base.device
