# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Finds the MLPs of a base by their structure, whatever their names are.

An MLP of a decoder layer is one of these, see `sites.py`:

- a module that takes the hidden state alone, with projections from and to the width of the hidden state;
- a module that takes more, for example the residual, with exactly two such projections;
- a module of experts, whose parameters have an expert, an input and an output dimension;
- where there is no such module, two projections that the layer calls itself, or two modules with one each.

Attention is told from an MLP by its arguments: a mask, a cache, positions.
"""

import inspect
from collections.abc import Iterator, Sequence

from torch import nn
from torch.nn.modules.conv import _ConvNd
from transformers import PreTrainedModel

from ...errors import UnsupportedAxisError
from ..decoder_layers import decoder_layers, text_config
from .sites import ExpertsMLP, MLPSite, TwoProjections, WholeMLP


NOT_OF_MLPS = frozenset(
    """attention_mask past_key_values past_key_value layer_past cache_params position_embeddings position_ids
    position_bias state encoder_hidden_states""".split()
)
"""Arguments that attention and recurrent layers take, and no MLP."""
LAST_NAMES = ("down_proj", "fc2", "c_proj", "dense_4h_to_h", "fc_out", "w2", "output_linear")
"""Usual names of a last projection, for MLPs in which several could be it by their sizes."""
NARROW = 8
"""A module of a layer is no MLP if it has fewer neurons than the hidden state has channels over this."""
AXES = "`neuron_keep`, `mlp_keep` and `bits`"


def find_sites(base: PreTrainedModel) -> tuple[MLPSite, ...]:
    """The MLPs of all decoder layers. A layer may have several, or, as a layer of a state-space model, none.

    Raises:
        UnsupportedAxisError: if there are none, or a layer has parts that are not understood.
    """
    start = f"The axes {AXES} cannot be controlled on {type(base).__name__}"
    layers, width = decoder_layers(base), hidden_width(base)
    if layers is None or width is None:
        raise UnsupportedAxisError(f"{start}: no decoder layers.")
    sites: list[MLPSite] = []
    for index, layer in enumerate(layers):
        try:
            sites.extend(_in_layer(layer, index, width))
        except UnsupportedAxisError as error:
            raise UnsupportedAxisError(f"{start}: {error}") from error
    if not sites:
        raise UnsupportedAxisError(
            f"{start}: no layer has an MLP. Layer 0 ({type(layers[0]).__name__}) consists of "
            f"{', '.join(name for name, _ in layers[0].named_children())}."
        )
    return tuple(sites)


def find_mlps(base: PreTrainedModel) -> tuple[nn.Module, ...]:
    """The modules that hold the weights of the MLPs of all decoder layers, see [`find_sites`]."""
    return tuple(module for site in find_sites(base) for module in site.modules)


def hidden_width(base: PreTrainedModel) -> int | None:
    """Channels of the hidden state, `None` if the config does not say."""
    return getattr(text_config(base), "hidden_size", None)


def _in_layer(layer: nn.Module, index: int, width: int) -> list[MLPSite]:
    found = list(_modules_in(layer, index, width, ""))
    experts = [site for site in found if isinstance(site, ExpertsMLP)]
    others = [site for site in found if "." in site.name or not _is_narrow(site, width)]
    if not experts and len(others) > 1:  # beside the MLP there are adapters and gates
        others = [max(others, key=_weights)]
    return others or list(_two_projections(layer, index, width))


def _is_narrow(site: MLPSite, width: int) -> bool:
    """Whether a module has too few neurons for an MLP, as adapters and gates do."""
    neurons = None if site.last is None else input_size(site.last)
    return neurons is not None and neurons * NARROW < width


def _weights(site: MLPSite) -> int:
    return sum(weight.numel() for module in site.modules for weight in module.parameters())


def _modules_in(module: nn.Module, index: int, width: int, prefix: str) -> Iterator[MLPSite]:
    """MLPs and experts among the children of a layer, and of blocks that join several."""
    for child_name, child in module.named_children():
        name = prefix + child_name
        if _arguments(child) & NOT_OF_MLPS:
            continue
        if holds_experts(child):
            yield _experts(child, index, name)
        elif isinstance(child, nn.ModuleList) or any(holds_experts(part) for part in child.children()):
            yield from _modules_in(child, index, width, f"{name}.")
        else:
            site = _module_site(child, index, name, width)
            if site is not None:
                yield site


def _experts(module: nn.Module, index: int, name: str) -> ExpertsMLP:
    """The site of a module of experts; not all can be told apart by row."""
    if len(_required(module)) not in (1, 3):
        raise UnsupportedAxisError(
            f"`{name}` of layer {index} ({type(module).__name__}) gets its tokens in another way than from "
            "a choice of experts per token, so that their rows are not known."
        )
    return ExpertsMLP(index, name, module)


def _module_site(module: nn.Module, index: int, name: str, width: int) -> MLPSite | None:
    """The site of a module that is an MLP, else `None`."""
    projections = projections_in(module)
    firsts = [part for part in projections if input_size(part) == width]
    lasts = [part for part in projections if output_size(part) == width]
    if len(projections) < 2 or not firsts or not lasts:
        return None
    if len(_required(module)) == 1:
        return WholeMLP(index, name, module, _last_projection(module, projections, width))
    pairs = _pairs([("", part) for part in projections], width)
    if len(projections) == 2 and len(pairs) == 1:
        return TwoProjections(index, name, pairs[0][0][1], pairs[0][1][1])
    return None


def _two_projections(layer: nn.Module, index: int, width: int) -> Iterator[MLPSite]:
    """Two projections that a layer calls itself, or one in each of two modules."""
    singles: list[tuple[str, nn.Module]] = []
    for name, child in layer.named_children():
        if is_projection(child):
            singles.append((name, child))
        elif not _arguments(child) & NOT_OF_MLPS:
            own = [(f"{name}.{inner}", part) for inner, part in child.named_children() if is_projection(part)]
            singles.extend(own if len(own) == 1 else [])
    pairs = _pairs(singles, width)
    if len(pairs) == 1:
        (name, first), (last_name, last) = pairs[0]
        yield TwoProjections(index, f"{name} and {last_name}", first, last)


Named = tuple[str, nn.Module]


def _pairs(projections: Sequence[Named], width: int) -> list[tuple[Named, Named]]:
    """Pairs of projections that their sizes allow to be the first and the last of an MLP, in either order."""
    return [
        (first, last)
        for first in projections
        for last in projections
        if first is not last
        and input_size(first[1]) == output_size(last[1]) == width
        and _follow_each_other(first[1], last[1])
    ]


def last_projection(mlp: nn.Module) -> nn.Module | None:
    """The last projection of a module that is an MLP; `None` if several could be it, or none."""
    projections = projections_in(mlp)
    width = input_size(projections[0]) if projections else None
    return None if width is None else _last_projection(mlp, projections, width)


def _last_projection(module: nn.Module, projections: Sequence[nn.Module], width: int) -> nn.Module | None:
    """The last projection of an MLP: the only one that its sizes, or its name, allow."""
    named = [part for name, part in module.named_children() if name in LAST_NAMES and output_size(part) == width]
    if len(named) == 1:
        return named[0]
    before = [part for part in projections if input_size(part) == width]
    lasts = [part for part in projections if output_size(part) == width]
    lasts = [part for part in lasts if any(_follow_each_other(f, part) for f in before if f is not part)]
    return lasts[0] if len(lasts) == 1 else None


def _follow_each_other(first: nn.Module, last: nn.Module) -> bool:
    """Whether the outputs of a projection, or their halves, can be the inputs of another one."""
    outputs, inputs = output_size(first), input_size(last)
    return outputs is not None and inputs is not None and outputs in (inputs, 2 * inputs)


def projections_in(module: nn.Module) -> list[nn.Module]:
    """The projections of a module in the order of their definition, adapters around them as one each."""
    if is_projection(module):
        return [module]
    return [part for child in module.children() for part in projections_in(child)]


def is_projection(module: nn.Module) -> bool:
    """Whether a module is a linear layer, of any library, or an adapter around one."""
    sizes = input_size(module), output_size(module)
    return all(isinstance(size, int) for size in sizes) and not isinstance(module, nn.Embedding | nn.Bilinear)


def holds_experts(module: nn.Module) -> bool:
    """Whether a module has parameters with an expert, an input and an output dimension."""
    return not isinstance(module, _ConvNd) and any(weight.dim() == 3 for weight in module.parameters(recurse=False))


def input_size(projection: nn.Module) -> int | None:
    """Inputs of a linear layer, of `Conv1D` or of an adapter around one; `None` if it does not say."""
    return getattr(projection, "in_features", getattr(projection, "nx", None))


def output_size(projection: nn.Module) -> int | None:
    """Outputs of a linear layer, of `Conv1D` or of an adapter around one; `None` if it does not say."""
    return getattr(projection, "out_features", getattr(projection, "nf", None))


def _arguments(module: nn.Module) -> frozenset[str]:
    return frozenset(inspect.signature(type(module).forward).parameters) - {"self"}


def _required(module: nn.Module) -> list[str]:
    """Arguments that a module's forward needs."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(type(module).forward).parameters.values()
    return [p.name for p in parameters if p.name != "self" and p.kind in kinds and p.default is p.empty]
