# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Dense forwards of a base, of which nothing is exchanged: only the input of the LM head is read."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from .executors import Change
from .lm_head import capture_hidden_state, lm_head_of
from .shared_changes import change_once, is_changed, no_changes


@contextmanager
def evaluating(base: PreTrainedModel) -> Iterator[None]:
    """Within the block, no module of the base is in training mode."""
    with made(stop_training(base)):
        yield


@contextmanager
def watching(base: PreTrainedModel) -> Iterator[None]:
    """Within the block, the base is in evaluation mode, and forwards of it keep the input of the LM head."""
    with made([*stop_training(base), watch_head(lm_head_of(base))]):
        yield


@contextmanager
def made(changes: list[Change]) -> Iterator[None]:
    """Within the block, changes are in force."""
    with contextlib.ExitStack() as undo:
        for change in changes:
            undo.callback(change_once(change.name, change.thing, change.make))
        yield


def stop_training(base: nn.Module) -> list[Change]:
    """The changes that put a base into evaluation mode, also those that other threads have made and will undo."""
    with no_changes():
        modules = [module for module in base.modules() if module.training or is_changed("training", module)]
    return [Change("training", module, functools.partial(_stop_training, module)) for module in modules]


def watch_head(head: nn.Module) -> Change:
    """The change that keeps the input of an LM head."""
    return Change("head", head, lambda: head.register_forward_pre_hook(capture_hidden_state).remove)


def _stop_training(module: nn.Module) -> Callable[[], None]:
    module.training = False
    return lambda: setattr(module, "training", True)
