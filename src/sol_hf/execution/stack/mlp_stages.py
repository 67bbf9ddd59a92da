# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The stages of an MLP in a program: all of its weights, or those of kept channels and neurons."""

import functools

import numpy as np
import torch

from ...kernels.cpu.lines import Lines
from ..mlp.kept_channels.input_major import InputMajorMLP
from ..mlp.kept_neurons.neuron_major import NeuronMajor
from ..mlp.step_down import StepDown
from ..mlp.step_mlp import StepMLP
from .products import address_of
from .stages import Branch, Stages
from .structure import LayerStructure


GATE_PART = 512
"""Neurons in a task of the activation."""


class MLPStages(Stages):
    """[`Stages`] with those of an MLP."""

    def _add_mlp(self, index: int, layer: LayerStructure, branch: Branch) -> Branch:
        kind = self.kind
        products, normed = self.structure.products[index], self._lines("normed", self.stream.width)
        if layer.is_parallel:
            self._join(branch, None, None)
        else:
            self._join(branch, layer.before[1], normed)
        hidden = self._lines("neurons", layer.contraction.in_features)
        if kind.channels == "kept":
            self._expand_kept(layer, normed, hidden)
        else:
            x = normed if kind.channels == "all" else self._keep(normed, "mlp_keep")[0]
            self._gate(layer, self._products("expanded", products.expansions, x), hidden)
        if kind.neurons == "kept":
            output = self._contract_kept(layer, hidden)
        else:
            x = hidden if kind.neurons == "all" else self._keep(hidden, "neuron_keep")[0]
            output = self._product("contracted", products.contraction, x)
        if kind.rounds:
            step, a = self._step, self._new(self._step.QUANTIZE_HEADER, self.rows, output.width)
            a[step.QUANTIZED], a[step.QUANTIZED_STRIDE] = output.address, output.stride
            a[step.LEVELS] = self.levels["bits"].data_ptr()
            self.program.begin_stage()
            self.program.add(step.quantize, a)
        return output, layer.after[1], layer.factor

    def _gate(self, layer: LayerStructure, answers: list[Lines], hidden: Lines) -> None:
        """Stage: the activation, and the product with the other projection."""
        from ...kernels.cpu.numba_mlp import ACTIVATIONS

        step, a = self._step, self._new(self._step.GATE_HEADER, self.rows, hidden.width)
        gate, up = answers[0], answers[1] if len(answers) > 1 else None
        if up is None and layer.parts.up is not None:
            gate, up = gate.part(0, hidden.width), gate.part(hidden.width, hidden.width)
        a[step.GATE], a[step.GATE_STRIDE], a[step.PART] = gate.address, gate.stride, GATE_PART
        if up is not None:
            a[step.UP], a[step.UP_STRIDE] = up.address, up.stride
        a[step.HIDDEN], a[step.HIDDEN_STRIDE] = hidden.address, hidden.stride
        a[step.KIND] = ACTIVATIONS.index(layer.parts.activation)
        self.program.begin_stage()
        self.program.add(step.gate, a)

    def _keep(self, x: Lines, axis: str) -> tuple[Lines, np.ndarray]:
        """Stage: the largest numbers of every line, the others zero. Returns them and the operation's arguments."""
        step, a, kept = self._step, self._new(self._step.KEEP_HEADER, self.rows, x.width), self._lines(axis, x.width)
        scratch = torch.zeros(x.width, dtype=torch.uint8), torch.zeros(x.width + 1, dtype=torch.int32)
        number = np.zeros(1, dtype=np.int64)
        a[step.SOURCE], a[step.KEPT], a[step.FRACTIONS] = x.address, kept.address, self.levels[axis].data_ptr()
        a[step.IN_USE], a[step.LISTED], a[step.NUMBER_AT] = *(s.data_ptr() for s in scratch), number.ctypes.data
        self.alive.append((scratch, number))
        self.program.begin_stage()
        self.program.add(step.keep, a)
        return kept, a

    def _expand_kept(self, layer: LayerStructure, x: Lines, hidden: Lines) -> None:
        """Stages: the neurons, from the weights of the kept channels alone."""
        from ...kernels.cpu import numba_mlp as kernel

        copy = StepMLP.of(layer.mlp).copy_of(InputMajorMLP)
        assert copy is not None, "the kind of the step was chosen by it"
        self._copies.append((functools.partial(StepMLP.of(layer.mlp).made_copy, InputMajorMLP), copy))
        kept, chosen = self._keep(x, "mlp_keep")
        a = self.program.take(kernel.HEADER, range(kernel.NEXT, kernel.NEXT + 1))
        sums = self._lines("sums", hidden.width)
        a[kernel.INPUT : kernel.LISTED] = kept.address, self.rows, x.width, hidden.width
        a[kernel.LISTED], a[kernel.GATE], a[kernel.UP] = (
            chosen[self._step.LISTED],
            *map(address_of, (copy.gate, copy.up)),
        )
        a[kernel.GATE_BIAS], a[kernel.UP_BIAS] = map(address_of, copy.biases[:2])
        a[kernel.HIDDEN], a[kernel.UP_SUMS], a[kernel.BLOCK] = hidden.address, sums.address, copy.block
        a[kernel.ACTIVATION] = kernel.ACTIVATIONS.index(layer.parts.activation)
        chosen[self._step.NUMBER_AT] = a[kernel.NUMBER :].ctypes.data
        self.program.begin_stage()
        self.program.add(kernel.expand_float32 if copy.gate.dtype == torch.float32 else kernel.expand_bfloat16, a)

    def _contract_kept(self, layer: LayerStructure, hidden: Lines) -> Lines:
        """Stages: the last projection, from the weights of the kept neurons alone."""
        from ...kernels.cpu import numba_mlp as kernel

        copy = StepDown.of(layer.contraction).copy_of(NeuronMajor)
        assert copy is not None, "the kind of the step was chosen by it"
        self._copies.append((functools.partial(StepDown.of(layer.contraction).made_copy, NeuronMajor), copy))
        kept, chosen = self._keep(hidden, "neuron_keep")
        outputs, bias = layer.contraction.out_features, layer.contraction.bias
        a = self.program.take(kernel.HEADER, range(kernel.NEXT, kernel.NEXT + 1))
        answer = self._lines("contracted", outputs)
        wide = None if bias is None else bias.detach().float()
        a[kernel.INPUT : kernel.LISTED] = kept.address, self.rows, hidden.width, outputs
        a[kernel.LISTED], a[kernel.GATE], a[kernel.BLOCK] = (
            chosen[self._step.LISTED],
            copy.weight.data_ptr(),
            copy.block,
        )
        a[kernel.GATE_BIAS], a[kernel.HIDDEN], a[kernel.OUTPUT] = address_of(wide), answer.address, answer.address
        chosen[self._step.NUMBER_AT] = a[kernel.NUMBER :].ctypes.data
        self.alive.append((copy, wide))
        self.program.begin_stage()
        self.program.add(kernel.project_float32 if copy.weight.dtype == torch.float32 else kernel.project_bfloat16, a)
        return answer
