# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""A softmax over scores that come block by block, and the largest of many float32.

A compiler may not turn a loop over `max` into vector code, since the order matters if a number is NaN. Here NaN are
passed over, and come out of the softmax by their weights.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .code_cache import njit
from .numba_memory import FAST_MATH, exp_of_negative
from .numba_vectors import FLOAT, LANES, LONG, VECTOR, load_vector


ZERO, NOTHING = np.float32(0.0), np.float32(-np.inf)
_LEAST = ir.Constant(VECTOR, [float("-inf")] * LANES)


@intrinsic
def _largest_of_vectors(typing, numbers, count):
    """The largest of some float32, whose number is a multiple of `LANES`."""

    def generate(context, builder, signature, arguments):
        numbers, count = arguments
        before, loop = builder.block, builder.append_basic_block("vectors")
        after = builder.append_basic_block("after")
        builder.branch(loop)
        builder.position_at_end(loop)
        place, known = builder.phi(LONG), builder.phi(VECTOR)
        place.add_incoming(LONG(0), before)
        known.add_incoming(_LEAST, before)
        vector = load_vector(builder, numbers, place)
        largest = builder.select(builder.fcmp_ordered(">", vector, known), vector, known)
        following = builder.add(place, LONG(LANES))
        place.add_incoming(following, loop)
        known.add_incoming(largest, loop)
        builder.cbranch(builder.icmp_signed("<", following, count), loop, after)
        builder.position_at_end(after)
        kind = ir.FunctionType(FLOAT, [VECTOR])
        name = f"llvm.vector.reduce.fmax.v{LANES}f32"
        return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [largest])

    return types.float32(types.CPointer(types.float32), types.int64), generate


@njit(error_model="numpy")
def largest_of(numbers, count):
    """The largest of `count` float32; negative infinity if there is none."""
    whole, largest = count - count % LANES, NOTHING
    if whole > 0:
        largest = _largest_of_vectors(numbers, whole)
    for j in range(whole, count):
        largest = max(largest, numbers[j])
    return largest


@njit(fastmath=FAST_MATH, error_model="numpy")
def update_softmax(logits, count, dim, state, total):
    """Turn the logits of a block into weights, and rescale the previous sums to the new maximum.

    `state` holds the maximum and the sum of weights so far.
    """
    highest = max(state[0], largest_of(logits, count))
    if highest == NOTHING:
        return False
    if state[0] != highest:
        shrink = exp_of_negative(state[0] - highest) if state[0] != NOTHING else ZERO
        state[0] = highest
        state[1] *= shrink
        for i in range(dim):
            total[i] *= shrink
    added = ZERO
    for j in range(count):
        logits[j] = exp_of_negative(logits[j] - highest) if logits[j] != NOTHING else ZERO
        added += logits[j]
    state[1] += added
    return True
