# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The kinds of MLPs that decoder layers have, and the modules at which the axes apply to each.

`mlp_keep` chooses where an MLP reads the hidden state, `neuron_keep` where its last projection reads the neurons, and
`bits` rounds its output:

    kind              reads the hidden state    reads the neurons     output
    whole module      the module                its last projection   the module
    two projections   the first projection      the last projection   the last projection
    experts           the module of all experts, after the router, whose input stays whole
"""

from dataclasses import dataclass

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from ...errors import UnsupportedAxisError
from .step_down import StepDown
from .step_experts import StepExperts
from .step_mlp import StepMLP
from .step_pair import StepFirst, StepLast


MLPPart = StepMLP | StepDown | StepExperts


@dataclass(frozen=True)
class MLPSite:
    """An MLP of a decoder layer; a layer may have several.

    Args:
        layer (`int`): Its decoder layer.
        name (`str`): Its name in the layer, for messages.
    """

    layer: int
    name: str

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that hold its weights."""
        raise NotImplementedError

    @property
    def last(self) -> nn.Module | None:
        """The module of its last projection; `None` if it has none of its own."""
        raise NotImplementedError

    def part(self, axis: str) -> MLPPart:
        """The part that carries out an axis.

        Raises:
            UnsupportedAxisError: if none can; the message begins with the name of the MLP.
        """
        raise NotImplementedError

    @property
    def title(self) -> str:
        """Its name for messages."""
        return f"the MLP of layer {self.layer}" if self.name in USUAL_NAMES else f"`{self.name}` of layer {self.layer}"

    def title_of(self, axis: str) -> str:
        """The name of the part that carries out an axis, for messages."""
        inner = axis == "neuron_keep" and self.last is not None
        return f"the last projection of {self.title}" if inner else self.title

    def check_int8(self) -> None:
        """Make the copy in int8, or raise [`UnsupportedAxisError`]."""
        raise UnsupportedAxisError(
            f"`bits_backend='int8'` needs MLPs of two or three plain linear layers in a module of their own, and "
            f"cannot run {self.title}: pass `bits_backend='fake'`."
        )

    def check_planes(self) -> None:
        """Raise [`UnsupportedAxisError`] if its weights cannot be read from planes; by default they can.

        Those of linear layers are checked elsewhere.
        """

    def refuse_spread_neurons(self, projection: nn.Module) -> None:
        """Raise [`UnsupportedAxisError`] if each process has only a part of the inputs of a last projection.

        The largest of all cannot be told from the largest of a part. FSDP collects weights and spreads no inputs.
        """
        shared = any(isinstance(weight, DTensor) for weight in projection.parameters())
        if shared and projection._forward_pre_hooks and not isinstance(projection, FSDPModule):
            raise UnsupportedAxisError(
                f"the neurons of {self.title} are spread over processes (tensor parallel), so that the largest of all "
                "are not known: leave the axis out of the budget, or load the base without `tp_plan`."
            )

    def keep_neurons(self) -> None:
        """Tell the part that chooses channels which part chooses neurons, if both run in one computation."""


USUAL_NAMES = ("mlp", "feed_forward", "ffn")


@dataclass(frozen=True)
class WholeMLP(MLPSite):
    """A module whose forward takes the hidden state and returns the output.

    Args:
        module (`nn.Module`): The module.
        projection (`nn.Module`, *optional*): Its last projection, if it is known.
    """

    module: nn.Module
    projection: nn.Module | None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.module,)

    @property
    def last(self) -> nn.Module | None:
        return self.projection

    def part(self, axis: str) -> StepMLP | StepDown:
        if axis != "neuron_keep":
            return StepMLP.of(self.module)
        if self.projection is None:
            children = ", ".join(name for name, _ in self.module.named_children()) or "no children"
            raise UnsupportedAxisError(
                f"{self.title} ({type(self.module).__name__}) has no last projection that can be told from the "
                f"others; it has {children}."
            )
        self.refuse_spread_neurons(self.projection)
        return StepDown.of(self.projection)

    def check_int8(self) -> None:
        StepMLP.of(self.module).int8_copy()

    def keep_neurons(self) -> None:
        down = self.part("neuron_keep")
        assert isinstance(down, StepDown)
        StepMLP.of(self.module).down = down


@dataclass(frozen=True)
class TwoProjections(MLPSite):
    """Two projections that a decoder layer calls itself, or an MLP whose forward does more than that of an MLP.

    Args:
        first (`nn.Module`): The one that reads the hidden state.
        projection (`nn.Module`): The one that reads the neurons.
    """

    first: nn.Module
    projection: nn.Module

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.first, self.projection)

    @property
    def last(self) -> nn.Module:
        return self.projection

    def part(self, axis: str) -> StepDown:
        self.refuse_spread_neurons(self.projection)
        return StepFirst.of(self.first) if axis == "mlp_keep" else StepLast.of(self.projection)


@dataclass(frozen=True)
class ExpertsMLP(MLPSite):
    """All experts of a mixture in one module, which gets the hidden states and the choice of the router.

    Args:
        module (`nn.Module`): The module.
    """

    module: nn.Module

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        return (self.module,)

    @property
    def last(self) -> None:
        return None

    def part(self, axis: str) -> StepExperts:
        part = StepExperts.of(self.module)
        if axis == "neuron_keep" and not part.has_known_layout:
            raise UnsupportedAxisError(
                f"{self.title} ({type(self.module).__name__}) does not say how its weights are laid out, so that "
                "the neurons of its experts cannot be told from other numbers."
            )
        return part

    def check_planes(self) -> None:
        raise UnsupportedAxisError(
            f"`bits_backend='nested'` reads plain linear layers, but {self.title} holds the weights of all experts in "
            "one tensor: pass `bits_backend='fake'`."
        )
