# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""`model.calibrate_planes()`: nested planes whose scales fit the inputs of the layers, as a text shows them."""

import torch
from transformers import PreTrainedModel

from ..execution.linear.plane_calibration import calibrate
from ..execution.linear.planed_layers import check_layers, planed_layers
from ..execution.mlp.discovery import find_mlps
from ..execution.watch import evaluating


class PlaneScales(PreTrainedModel):
    """Mixin of [`SOLForCausalLM`]: the method `calibrate_planes`."""

    base: PreTrainedModel

    def calibrate_planes(self, input_ids: torch.LongTensor) -> None:
        """Choose the scales of `bits_backend="nested"` by a text: less is lost at the same bytes.

        The base processes the text, and it is noted how large the inputs of every channel are. The next call that
        needs planes makes them with the scales of least squared error of the outputs. Nothing is saved; all models
        over this base read these planes. Call it while no other call runs.

        Args:
            input_ids (`torch.LongTensor` of shape `(rows, length)`): Texts without padding. A few thousand tokens
                are enough.

        Raises:
            ValueError: for other input.
            UnsupportedAxisError: if a layer or its weights are of another kind, before any compute.

        Examples:

        ```python
        >>> import torch
        >>> from transformers import LlamaConfig, LlamaForCausalLM
        >>> from sol_hf import SOLForCausalLM
        >>> sizes = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
        >>> model = SOLForCausalLM.from_base(LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=99)))
        >>> model.calibrate_planes(torch.ones(2, 40, dtype=torch.long))
        ```
        """
        is_tokens = isinstance(input_ids, torch.Tensor) and input_ids.dtype in (torch.long, torch.int)
        if not is_tokens or input_ids.dim() != 2 or not input_ids.numel():
            found = tuple(input_ids.shape) if isinstance(input_ids, torch.Tensor) else input_ids
            raise ValueError(f"`input_ids` must be token ids (rows, length), got {found}.")
        layers = planed_layers(self.base, find_mlps(self.base))
        check_layers(layers)
        with evaluating(self.base):
            calibrate(self.base, layers, input_ids)
