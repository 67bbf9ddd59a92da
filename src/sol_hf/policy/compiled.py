# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policy for one step on the CPU, as one program of compiled operations.

The policy runs before every step of the LM. By its modules it takes longer than to read its weights ten times.

    perceive                the numbers of the budget, the inputs of the network     |  not for `logits`, which
    dense, product          features of the budget, projection                          gets the numbers
    join, products, recall, product, join, product, gate, product                    every layer
    join, product, dense    heads
    decide                  prior, limits, the best action                           |  not for `logits`
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from ..budget.limits import Limits
from ..kernels.cpu.lines import Lines, add_product
from ..kernels.cpu.program import Program, bits_of
from .decision import Decision, set_addresses
from .episode_cache import EpisodeCache, Room
from .short_weights import ShortWeights
from .step_tables import PolicyTables, numbers_of


ROOM_OF_LAYER = 160
ADDED = -1
"""In place of an activation: the product is added to the output."""


class PolicyProgram:
    """A step of a policy.

    Args:
        policy (`nn.Module`): A [`SOLPolicyModel`] whose modules are plain, in float32 on the CPU.
        rows (`int`): Rows of a step.
        short ([`ShortWeights`]): Where the weights of products are read.
    """

    def __init__(self, policy: Any, rows: int, short: ShortWeights):
        from ..kernels.cpu import numba_mlp, numba_policy, numba_step

        self._short = short
        self._step, self._own, self._rows = numba_step, numba_policy, rows
        self._gelu, self._steps = numba_mlp.ACTIVATIONS.index("gelu"), policy.config.episode_length
        self._alive: list[object] = []
        projection, layers, columns = policy.input_projection, list(policy.layers), policy.scalar_columns
        self._program = Program((len(layers) + 5) * ROOM_OF_LAYER)
        size = projection.out_features
        self.features, self.stream = Lines.of(rows, projection.in_features), Lines.of(rows, size)
        self._normed = Lines.of(rows, size)
        self._recalls: list[Any] = []
        self._rooms: list[Room | None] = [None] * len(layers)
        self.scalars = Lines.of(rows, columns.page_fill + 1)
        self._places = self._places_of(policy)
        targets = self.scalars.part(columns.targets.start, columns.targets.stop - columns.targets.start)
        self._perceived = self._perceive(policy)
        budget = self._add_scalars(policy, targets)
        branch = self._product(self.features, projection)
        for layer in layers:
            branch = self._add_layer(layer, branch)
        self._join(self.stream, branch, policy.final_norm, self._normed)
        self.logits = self._product(self._normed, policy.action_head)
        self._program.begin_stage()
        self._dense(budget, policy.budget_head[2], self.logits, ADDED)
        self._program.begin_stage()
        heads = self.logits, self.scalars, policy.budget_prior
        is_factored = policy.config.action_head == "factored"
        self._decision = Decision(self._program, rows, *heads, sum(policy.level_counts), is_factored)
        self._program.finish()
        self._tables = PolicyTables(policy)
        memories = (self.features, self.scalars, self.stream, self.logits)
        self._features, self._scalars, self._stream, self._outputs = (lines.memory.numpy() for lines in memories)

    def _places_of(self, policy: Any) -> list[slice]:
        """Where in the features the state, the embedding, the scalars and the action are."""
        config = policy.config
        widths = config.base_hidden_size, config.base_embedding_size, policy.scalar_features[0].out_features
        begins = [0, widths[0], sum(widths[:2]), sum(widths)]
        return [slice(*pair) for pair in zip(begins, [*begins[1:], self.features.width], strict=True)]

    def _perceive(self, policy: Any) -> np.ndarray:
        """Stage: the inputs of the network. Returns its arguments."""
        own, config, columns = self._own, policy.config, policy.scalar_columns
        a = self._program.take(own.PERCEIVE_HEADER, range(1))
        a[own.STATE_WIDTH], a[own.EMBEDDING_WIDTH] = config.base_hidden_size, config.base_embedding_size
        a[own.FEATURES], a[own.FEATURES_STRIDE] = self.features.address, self.features.stride
        actions, positions, pages = policy.action_embedding, policy.position_embedding, policy.page_embedding
        a[own.ACTIONS], a[own.ACTION_WIDTH] = actions.weight.data_ptr(), actions.embedding_dim
        a[own.ACTION_PLACE], a[own.NONE_BEFORE] = self._places[3].start, actions.num_embeddings - 1
        a[own.POSITIONS], a[own.PAGES] = positions.weight.data_ptr(), 0 if pages is None else pages.weight.data_ptr()
        a[own.STREAM], a[own.SIZE], a[own.PAGE_SIZE] = self.stream.address, self.stream.width, config.page_size
        a[own.SCALARS], a[own.SCALARS_STRIDE], a[own.AXES] = self.scalars.address, self.scalars.stride, columns.axes
        self._program.begin_stage()
        self._program.add(own.perceive, a)
        return a

    def _add_scalars(self, policy: Any, targets: Lines) -> Lines:
        """Stages: the features of the scalars, and those of the budget, which are returned."""
        first, norm, hidden = policy.scalar_features[0], policy.scalar_features[2], policy.budget_head[0]
        scalars, budget = Lines.of(self._rows, first.out_features), Lines.of(self._rows, hidden.out_features)
        self._program.begin_stage()
        self._dense(self.scalars.part(0, first.in_features), first, scalars, self._gelu)
        self._dense(targets, hidden, budget, self._gelu)
        self._join(scalars, None, norm, self.features.part(self._places[2].start, scalars.width))
        self._alive += [scalars, budget]
        return budget

    def _dense(self, x: Lines, module: nn.Linear, answer: Lines, kind: int) -> None:
        own, a = self._own, self._program.take(self._own.DENSE_HEADER, range(1))
        a[own.LINES], a[own.INPUT], a[own.INPUT_STRIDE], a[own.INPUTS] = self._rows, x.address, x.stride, x.width
        a[own.WEIGHT], a[own.BIAS], a[own.KIND] = module.weight.data_ptr(), module.bias.data_ptr(), kind
        a[own.OUTPUT], a[own.OUTPUT_STRIDE], a[own.OUTPUTS] = answer.address, answer.stride, module.out_features
        self._program.add(own.dense, a)

    def _product(self, x: Lines, module: nn.Linear) -> Lines:
        """Stage: a product."""
        self._program.begin_stage()
        return self._products(x, module)[0]

    def _products(self, x: Lines, *modules: nn.Linear) -> list[Lines]:
        answers = []
        for module in modules:
            answers.append(Lines.of(self._rows, module.out_features))
            weight, answer = self._short.of(module.weight), answers[-1]
            self._alive += [answer, add_product(self._program, x, weight, module.bias, answer)]
        return answers

    def _join(self, stream: Lines, branch: Lines | None, norm: nn.LayerNorm, target: Lines) -> None:
        """Stage: the stream, to which a branch is added, and its norm."""
        step, a = self._step, self._program.take(self._step.JOIN_HEADER, range(1))
        a[step.LINES], a[step.CHANNELS] = self._rows, stream.width
        a[step.STREAM], a[step.TARGET], a[step.TARGET_STRIDE] = stream.address, target.address, target.stride
        if branch is not None:
            a[step.ADDED], a[step.ADDED_STRIDE], a[step.FACTOR] = branch.address, branch.stride, bits_of(1.0)
        a[step.OUTER], a[step.OUTER_EPSILON] = norm.weight.data_ptr(), bits_of(norm.eps)
        a[step.OUTER_BIAS], a[step.IS_CENTERED] = norm.bias.data_ptr(), True
        self._program.begin_stage()
        self._program.add(step.join, a)

    def _add_layer(self, layer: Any, branch: Lines) -> Lines:
        own, size, attention = self._own, self.stream.width, layer.attention
        self._join(self.stream, branch, layer.attention_norm, self._normed)
        self._program.begin_stage()
        query, key, value = self._products(self._normed, attention.q_proj, attention.k_proj, attention.v_proj)
        recalled, a = Lines.of(self._rows, size), self._program.take(own.RECALL_HEADER, range(1))
        a[own.LINES], a[own.HEADS], a[own.DIM] = self._rows, size // attention.head_dim, attention.head_dim
        a[own.QUERY], a[own.KEY], a[own.VALUE] = query.address, key.address, value.address
        a[own.SCALE], a[own.RECALLED] = bits_of(attention.head_dim**-0.5), recalled.address
        self._program.begin_stage()
        self._program.add(own.recall, a)
        self._recalls.append(a)
        self._alive.append(recalled)
        self._join(self.stream, self._product(recalled, attention.o_proj), layer.mlp_norm, self._normed)
        wide, step = self._product(self._normed, layer.mlp[0]), self._step
        g = self._program.take(step.GATE_HEADER, range(1))
        g[step.LINES], g[step.CHANNELS] = self._rows, wide.width
        g[step.GATE], g[step.GATE_STRIDE], g[step.PART] = wide.address, wide.stride, wide.width
        g[step.HIDDEN], g[step.HIDDEN_STRIDE], g[step.KIND] = wide.address, wide.stride, self._gelu
        self._program.begin_stage()
        self._program.add(step.gate, g)
        return self._product(wide, layer.mlp[2])

    def __call__(
        self,
        state: torch.Tensor,
        embedding: torch.Tensor,
        scalars: torch.Tensor,
        previous_action: torch.Tensor,
        past: Any,
    ) -> torch.Tensor:
        """The logits of a step.

        Args:
            state (`torch.Tensor` of shape `(rows, base_hidden_size)`): The LM's state.
            embedding (`torch.Tensor` of shape `(rows, base_embedding_size)`): The token.
            scalars (`torch.Tensor` of shape `(rows, columns)`): The scalars, in float32.
            previous_action (`torch.LongTensor` of shape `(rows,)`): The action before.
            past (`Cache`): Keys and values of the earlier steps of the episode; those of this step are added.

        Returns:
            `torch.Tensor` of shape `(rows, n_actions)`: Logits, in float32.
        """
        columns = numbers_of(scalars)
        parts = numbers_of(state), numbers_of(embedding), self._tables.action(previous_action)
        for place, part in zip((0, 1, 3), parts, strict=True):
            self._features[:, self._places[place]] = part
        self._scalars[:, : columns.shape[1]] = columns
        self._stream[:] = self._tables.added(past.get_seq_length(), columns)
        self._perceived[self._own.LINES] = 0
        self._decision.skip()
        self._run(past)
        return self._scores(columns)

    def choose(self, observation: Any, past: Any, limits: Limits) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The actions of a step.

        Args:
            observation ([`Observation`]): The step, on the CPU.
            past (`Cache`): As of a call.
            limits ([`Limits`]): Those of the call.

        Returns:
            The actions `(rows,)`; and `None`, or the logits `(rows, n_actions)` where some action cannot be chosen
            from them by compiled code, since they are not all finite, or the limits contradict each other.
        """
        own, a, ledger = self._own, self._perceived, observation.ledger
        bank, state, embedding = ledger.bank, observation.hidden_state, observation.token_embedding
        if state.dtype != embedding.dtype or state.dtype not in (torch.float32, torch.bfloat16):
            state, embedding = state.float(), embedding.float()
        a[own.LINES], a[own.ARE_HALF] = self._rows, state.dtype == torch.bfloat16
        progress = bits_of((observation.step + 1) / observation.episode_length)
        a[own.STEP], a[own.PROGRESS], a[own.APART], a[own.DIVISORS] = past.get_seq_length(), progress, 0, 0
        if ledger.divisors is not None:
            a[own.DIVISORS] = ledger.divisors.ctypes.data
        given = {
            own.STATE: state,
            own.EMBEDDING: embedding,
            own.PREVIOUS: observation.previous_action,
            own.ASKED: observation.require_targets() if bank is None else bank.asked,
            own.SUMS: ledger.episode_sums,
            own.DONE: ledger.episode_counts,
            own.CONTROLLABLE: observation.controllable,
            own.PAGE_FILL: observation.page_fill,
        }
        if ledger.held_counts is not None:
            given[own.APART] = ledger.held_counts
        chosen = torch.empty(self._rows, dtype=torch.long)
        alive = set_addresses(a, given), self._decision.set_step(observation, limits, chosen)
        self._run(past)
        del alive
        return chosen, self._scores(self._scalars) if self._decision.undecided.any() else None

    def _scores(self, columns: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(self._tables.logits(self._outputs, columns))

    def _run(self, past: Any) -> None:
        """Run the program. Keys and values of the step go to the cache."""
        own, count, foreign = self._own, past.get_seq_length(), []
        for number, a in enumerate(self._recalls):
            shape = self._rows, int(a[own.HEADS]), int(a[own.DIM]), self._steps
            layer = past.layer(number) if isinstance(past, EpisodeCache) else None
            if layer is not None:
                room = layer.append_step(*shape)
            else:
                room = _room_beside(past, number, *shape)
                foreign.append((number, room))
            if room is not self._rooms[number]:
                self._rooms[number] = room
                a[[own.KEYS, own.VALUES, own.CAPACITY]] = room.addresses
            a[own.PAST] = count
        self._program.run()
        for number, room in foreign:
            past.update(*(memory[:, :, count : count + 1] for memory in (room.keys, room.values)), number)


def _room_beside(past: Any, number: int, rows: int, heads: int, dim: int, steps: int) -> Room:
    """Room for a step after those in a layer of a cache of another kind."""
    keys, values = (torch.zeros(rows, heads, steps, dim) for _ in range(2))
    count = past.get_seq_length(number)
    if count:
        keys[:, :, :count], values[:, :, :count] = past.layers[number].keys, past.layers[number].values
    return Room(keys, values, count)
