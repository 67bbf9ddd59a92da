# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Controllers score the actions of a decode step. The learned policy is a controller, and so is every baseline.

A controller implements [`Controller.__call__`]. Its state within an episode is stored in `observation.state`, which is
part of the cache: when the generation loop reorders or repeats rows, the state is reordered and repeated, too.
"""

import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ..budget.action_space import ActionSpace
from ..budget.ledger import BudgetLedger


@dataclass(frozen=True)
class Observation:
    """The input of a controller before a decode step.

    Args:
        hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`): The LM's last hidden state, after the final norm.
        token_embedding (`torch.Tensor` of shape `(rows, embedding_size)`): Input embedding of the token to process.
        previous_action (`torch.LongTensor` of shape `(rows,)`): `n_actions` at the start of an episode.
        controllable (`torch.BoolTensor` of shape `(rows,)`): Whether the row's action will be used and counted.
        remaining (`torch.Tensor` of shape `(rows,)`): Controllable steps left in the episode, this one included.
        step (`int`): Index of the step within its episode.
        total_step (`int`): Index of the step within the generation.
        episode_length (`int`): Steps in an episode.
        targets (`torch.Tensor` of shape `(rows, axes)`, *optional*): The budget in ratio units; for a controller with
            `follows_bank`, what it is asked to spend in this episode.
        ledger ([`BudgetLedger`]): The compute spent so far.
        action_space ([`ActionSpace`]): Meaning of the action ids.
        state (`dict[str, Any]`): The controller's state within the episode.
        page_fill (`torch.Tensor` of shape `(rows,)`): Filled share of the page of the token to process, this token
            included.
        previous_hidden_state (`torch.Tensor` of shape `(rows, hidden_size)`, *optional*): The hidden state of one step
            before; `None` at the first step of an episode.
        previous_embedding (`torch.Tensor` of shape `(rows, embedding_size)`, *optional*): Input embedding of the token
            before the one to process; at the first step of an episode only, and `None` if there is no such token.
        logits_digest (`torch.Tensor` of shape `(rows, ...)`, *optional*): What [`Controller.digest_logits`] returned
            for the logits after the last processed token; `None` for a controller without `needs_logits`.
        held (`torch.BoolTensor` of shape `(rows, axes)`, *optional*): Axes that this step holds at their largest
            level, apart from the budget, because the text is short; `None` if there are none in any step.
        backend (`str`): That of the call, for controllers with compiled code.
        remaining_in_call (`torch.Tensor` of shape `(rows,)`, *optional*): Controllable steps left in the call, this
            one included; `None` unless the call is `exact`.
    """

    hidden_state: torch.Tensor
    token_embedding: torch.Tensor
    previous_action: torch.Tensor
    controllable: torch.Tensor
    remaining: torch.Tensor
    step: int
    total_step: int
    episode_length: int
    targets: torch.Tensor | None
    ledger: BudgetLedger
    action_space: ActionSpace
    state: dict[str, Any]
    page_fill: torch.Tensor
    previous_hidden_state: torch.Tensor | None = None
    previous_embedding: torch.Tensor | None = None
    logits_digest: torch.Tensor | None = None
    held: torch.Tensor | None = None
    backend: str = "reference"
    remaining_in_call: torch.Tensor | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.previous_action)

    @property
    def scalars(self) -> torch.Tensor:
        """[`BudgetLedger.scalars`] and `page_fill`, of shape `(rows, 2 + 2 * axes + 1)`; see [`ScalarColumns`]."""
        spent = self.ledger.scalars(self.step, self.episode_length, self.controllable, self.require_targets())
        return torch.cat([spent, self.page_fill[:, None]], dim=-1)

    def copy(self) -> "Observation":
        """A copy for code that may edit what it is given; `state`, which is meant to be edited, is the same object."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        tensors: dict[str, Any] = {name: value.clone() for name, value in values if isinstance(value, torch.Tensor)}
        return replace(self, **tensors, ledger=self.ledger.copy(), action_space=copy.copy(self.action_space))

    def as_asked(self, controller: "Controller") -> "Observation":
        """The observation that a controller gets: see [`Controller.follows_bank`]."""
        bank = self.ledger.bank
        return self if bank is None or not controller.follows_bank else replace(self, targets=bank.asked)

    def require_targets(self) -> torch.Tensor:
        """The targets.

        Raises:
            ValueError: if the call has no budget.
        """
        if self.targets is None:
            names = ", ".join(f"`{name}`" for name in self.action_space.axis_names)
            raise ValueError(f"This controller needs a budget: pass {names} or `budget`.")
        return self.targets


class Controller:
    """Base class of controllers, which choose actions.

    Class attributes:
        needs_budget (`bool`): Whether it needs targets.
        needs_logits (`bool`): Whether it needs the logits of the token before, see [`Controller.digest_logits`].
        follows_bank (`bool`): Whether the targets that it sees follow the [`Bank`] of a budget over the generation: an
            episode is asked for more after episodes that have saved, and for less after dear ones.
        rows_are_independent (`bool`): Whether the scores of a row depend on that row's part of the observation only.
            Scoring then computes a beginning that several rows have in common only once.

    Examples:

    ```python
    >>> import torch
    >>> from sol_hf import Controller
    >>> class Cheapest(Controller):
    ...     def __call__(self, observation):
    ...         cost = observation.action_space.ratios_on(observation.controllable.device).mean(dim=-1)
    ...         return -cost.expand(observation.rows, -1)
    ```
    """

    needs_budget = True
    needs_logits = False
    follows_bank = False
    rows_are_independent = False

    def __call__(self, observation: Observation) -> torch.Tensor:
        """Scores of all actions, of shape `(rows, n_actions)`; the highest allowed one is taken, or one is drawn."""
        raise NotImplementedError

    def digest_logits(self, logits: torch.Tensor) -> torch.Tensor:
        """The part of next-token logits `(rows, vocab)` that the next observation needs; only with `needs_logits`.

        By default all logits. They are kept for every step of an episode, so return only what is needed, in any
        shape whose first dimension is the rows.
        """
        return logits
