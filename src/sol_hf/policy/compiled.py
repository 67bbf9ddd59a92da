# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The policy for one step on the CPU, as one program of compiled operations.

The policy runs before every step of the LM. By its modules it takes longer than to read its weights ten times.
"""

import threading
import weakref
from typing import Any

import torch
from torch import nn

from ..kernels.cpu.compilation import loads
from ..kernels.cpu.lines import Lines, add_product
from ..kernels.cpu.program import Program, bits_of
from ..kernels.cpu.watched import WatchedModules
from .budget_prior import BudgetPrior
from .step_tables import PolicyTables, numbers_of


KERNELS = ("numba_program", "numba_step", "numba_linear")
MOST_ROWS = 32
"""Most rows of a program; with more, torch's products are as fast."""
PLAIN = (nn.Linear, nn.LayerNorm, nn.GELU, nn.Embedding, nn.Sequential, nn.ModuleList)
ROOM_OF_LAYER = 160
ADDED = -1
"""In place of an activation: the product is added to the output."""

_PROGRAMS = threading.local()
"""The programs of this thread, by policy and number of rows."""


class PolicyProgram:
    """A step of a policy.

    Args:
        policy (`nn.Module`): A [`SOLPolicyModel`] whose modules are plain, in float32 on the CPU.
        rows (`int`): Rows of a step.
    """

    def __init__(self, policy: Any, rows: int):
        from ..kernels.cpu import numba_mlp, numba_step

        self._step, self._rows, self._gelu = numba_step, rows, numba_mlp.ACTIVATIONS.index("gelu")
        self._alive: list[object] = []
        projection, layers, columns = policy.input_projection, list(policy.layers), policy.scalar_columns
        self._program = Program((len(layers) + 4) * ROOM_OF_LAYER)
        size = projection.out_features
        self.features, self.stream = Lines.of(rows, projection.in_features), Lines.of(rows, size)
        self._normed = Lines.of(rows, size)
        self._new: list[tuple[Lines, Lines]] = []
        self._recalls: list[Any] = []
        self.scalars = Lines.of(rows, columns.page_fill + 1)
        self._places = self._places_of(policy)
        targets = self.scalars.part(columns.targets.start, columns.targets.stop - columns.targets.start)
        budget = self._perceive(policy, targets)
        branch = self._product(self.features, projection)
        for layer in layers:
            branch = self._add_layer(layer, branch)
        self._join(self.stream, branch, policy.final_norm, self._normed)
        self.logits = self._product(self._normed, policy.action_head)
        self._program.begin_stage()
        self._dense(budget, policy.budget_head[2], self.logits, ADDED)
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

    def _perceive(self, policy: Any, targets: Lines) -> Lines:
        """Stages: the features of the scalars, and those of the budget, which are returned."""
        first, norm, hidden = policy.scalar_features[0], policy.scalar_features[2], policy.budget_head[0]
        scalars, budget = Lines.of(self._rows, first.out_features), Lines.of(self._rows, hidden.out_features)
        self._program.begin_stage()
        self._dense(self.scalars.part(0, first.in_features), first, scalars, self._gelu)
        self._dense(targets, hidden, budget, self._gelu)
        self._join(scalars, None, norm, self.features.part(self._places[2].start, scalars.width))
        self._alive += [scalars, budget]
        return budget

    def _operation(self, header: int, channels: int) -> Any:
        a = self._program.take(header, range(1))
        a[self._step.LINES], a[self._step.CHANNELS] = self._rows, channels
        return a

    def _dense(self, x: Lines, module: nn.Linear, answer: Lines, kind: int) -> None:
        step, a = self._step, self._operation(self._step.DENSE_HEADER, module.out_features)
        a[step.FEW], a[step.FEW_STRIDE], a[step.FEW_NUMBER] = x.address, x.stride, module.in_features
        a[step.FEW_WEIGHT], a[step.FEW_BIAS] = module.weight.data_ptr(), module.bias.data_ptr()
        a[step.DENSE_KIND], a[step.DENSE_SUM], a[step.DENSE_STRIDE] = kind, answer.address, answer.stride
        self._program.add(step.dense, a)

    def _product(self, x: Lines, module: nn.Linear) -> Lines:
        """Stage: a product."""
        self._program.begin_stage()
        return self._products(x, module)[0]

    def _products(self, x: Lines, *modules: nn.Linear) -> list[Lines]:
        answers = []
        for module in modules:
            answers.append(Lines.of(self._rows, module.out_features))
            self._alive += [answers[-1], add_product(self._program, x, module.weight, module.bias, answers[-1])]
        return answers

    def _join(self, stream: Lines, branch: Lines | None, norm: nn.LayerNorm, target: Lines) -> None:
        """Stage: the stream, to which a branch is added, and its norm."""
        step, a = self._step, self._operation(self._step.JOIN_HEADER, stream.width)
        a[step.STREAM], a[step.TARGET], a[step.TARGET_STRIDE] = stream.address, target.address, target.stride
        if branch is not None:
            a[step.ADDED], a[step.ADDED_STRIDE], a[step.FACTOR] = branch.address, branch.stride, bits_of(1.0)
        a[step.OUTER], a[step.OUTER_EPSILON] = norm.weight.data_ptr(), bits_of(norm.eps)
        a[step.OUTER_BIAS], a[step.IS_CENTERED] = norm.bias.data_ptr(), True
        self._program.begin_stage()
        self._program.add(step.join, a)

    def _add_layer(self, layer: Any, branch: Lines) -> Lines:
        step, size, own = self._step, self.stream.width, layer.attention
        self._join(self.stream, branch, layer.attention_norm, self._normed)
        self._program.begin_stage()
        query, key, value = self._products(self._normed, own.q_proj, own.k_proj, own.v_proj)
        recalled, a = Lines.of(self._rows, size), self._operation(step.RECALL_HEADER, size)
        a[step.NEW_QUERY], a[step.NEW_KEY], a[step.NEW_VALUE] = query.address, key.address, value.address
        a[step.FEW_HEADS], a[step.SCALE] = size // own.head_dim, bits_of(own.head_dim**-0.5)
        a[step.RECALLED] = recalled.address
        self._program.begin_stage()
        self._program.add(step.recall, a)
        self._new.append((key, value))
        self._recalls.append(a)
        self._alive.append(recalled)
        self._join(self.stream, self._product(recalled, own.o_proj), layer.mlp_norm, self._normed)
        wide = self._product(self._normed, layer.mlp[0])
        g = self._operation(step.GATE_HEADER, wide.width)
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
        kept = self._recall(past)
        self._program.run()
        del kept
        heads = self._rows, int(self._recalls[0][self._step.FEW_HEADS]), 1, -1
        for number, (key, value) in enumerate(self._new):  # the cache copies them
            past.update(key.memory.view(heads), value.memory.view(heads), number)
        return torch.from_numpy(self._tables.logits(self._outputs, columns))

    def _recall(self, past: Any) -> list[torch.Tensor]:
        """Let the layers read earlier steps; returns what must live until they have."""
        step, kept = self._step, []
        for number, a in enumerate(self._recalls):
            a[step.PAST] = count = past.get_seq_length(number)
            if count:
                keys, values = (x.contiguous() for x in (past.layers[number].keys, past.layers[number].values))
                a[step.PAST_KEYS], a[step.PAST_VALUES] = keys.data_ptr(), values.data_ptr()
                kept += [keys, values]
        return kept


class PolicyPrograms:
    """The programs of one policy in one thread."""

    def __init__(self, policy: Any):
        self._modules = WatchedModules(policy)
        self._weights = list(policy.parameters())
        self._addresses: list[int] = []
        self._can_compile = all(map(loads, KERNELS)) and _is_known(policy)
        self._by_rows: dict[int, PolicyProgram] = {}

    def are_current(self) -> bool:
        """Whether the policy still has the same modules."""
        return self._modules.are_current()

    def of(self, policy: Any, rows: int) -> PolicyProgram | None:
        """The program for a number of rows; `None` if the modules have to run."""
        grad = torch.is_grad_enabled() and any(weight.requires_grad for weight in self._weights)
        if not self._can_compile or grad or torch.is_autocast_enabled("cpu") or not self._modules.are_plain():
            return None
        addresses = [weight.data_ptr() for weight in self._weights]
        if addresses != self._addresses:
            self._by_rows, self._addresses = {}, addresses
            if not all(
                x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() for x in self._weights
            ):
                self._addresses = []
                return None
        if rows not in self._by_rows:
            self._by_rows[rows] = PolicyProgram(policy, rows)
        return self._by_rows[rows]


def program_of(policy: nn.Module, rows: int) -> PolicyProgram | None:
    """The program of a policy for this thread; `None` if its modules have to run."""
    if not 0 < rows <= MOST_ROWS:
        return None
    known = getattr(_PROGRAMS, "known", None)
    if known is None:
        known = _PROGRAMS.known = weakref.WeakKeyDictionary()
    programs = known.get(policy)
    if programs is None or not programs.are_current():
        programs = known[policy] = PolicyPrograms(policy)
    return programs.of(policy, rows)


def _is_readable(weight: torch.Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def _is_known(policy: Any) -> bool:
    """Whether the modules of a policy are of known classes, and of sizes that compiled code can compute."""
    from ..kernels.cpu.numba_vectors import LANES

    modules, layers = list(policy.modules()), list(policy.layers.modules())
    own = [x for x in modules if type(x) not in PLAIN]
    known = all(type(x).__module__ in (type(policy).__module__, BudgetPrior.__module__) for x in own)
    products = [policy.input_projection, policy.action_head, *(x for x in layers if type(x) is nn.Linear)]
    return known and all(x.in_features % LANES == 0 for x in products)
