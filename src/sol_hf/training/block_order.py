# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""In which order a run sees its blocks: a function of the seed and of the place in the run, so that it can be resumed.

A batch of rollouts needs `blocks` different blocks. Every process gets a slice of

    block 0 block 0 ... block 1 block 1 ...     each `generations` times, the whole `repeats` times

The blocks of a dataset are shuffled anew in every epoch. A stream is read again from its beginning when it ends, and
shuffled anew, too; to the trainer it has no end, because the place in a stream that ends is not known in advance.
Blocks at the end that do not fill a batch are left out in that epoch.
"""

from collections.abc import Iterable, Iterator
from itertools import count, islice
from typing import Any, TypeAlias

import torch
from datasets import Dataset, IterableDataset
from torch.utils.data import IterableDataset as Stream
from torch.utils.data import Sampler


BlockDataset: TypeAlias = Dataset | IterableDataset


class EpochSampler(Sampler[int]):
    """Indices of the blocks of an epoch, each repeated for its rollouts.

    The order is that of [`~trl.trainer.utils.RepeatSampler`]. Differences: an epoch can be chosen, and its order does
    not depend on the epochs that were run before by the same object.

    Args:
        length (`int`): Blocks of the dataset.
        blocks (`int`): Blocks of a batch of rollouts.
        generations (`int`): Rollouts of a block.
        repeats (`int`): How often a batch is needed.
        seed (`int`, *optional*): Seed of the order; without one, blocks are not shuffled.
    """

    def __init__(self, length: int, blocks: int, generations: int, repeats: int, seed: int | None):
        self.length, self.blocks, self.generations, self.repeats, self.seed = (
            length,
            blocks,
            generations,
            repeats,
            seed,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; iterations after it are of the epochs that follow."""
        self.epoch = epoch

    def order(self, epoch: int) -> list[int]:
        """All blocks in the order of an epoch."""
        if self.seed is None:
            return list(range(self.length))
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(epoch):
            torch.randperm(self.length, generator=generator)
        return torch.randperm(self.length, generator=generator).tolist()

    def __iter__(self) -> Iterator[int]:
        order, self.epoch = self.order(self.epoch), self.epoch + 1
        return repeated(order, self.blocks, self.generations, self.repeats)

    def __len__(self) -> int:
        return self.length // self.blocks * self.blocks * self.generations * self.repeats


class EndlessBlocks(Stream):
    """Blocks of a stream, each repeated for its rollouts, epoch after epoch without an end.

    Args:
        stream (`IterableDataset`): Blocks.
        blocks (`int`): Blocks of a batch of rollouts.
        generations (`int`): Rollouts of a block.
        repeats (`int`): How often a batch is needed.
        seed (`int`, *optional*): Seed of the buffered shuffle; without one, blocks are not shuffled.

    Raises:
        ValueError: while it is read, if an epoch has too few blocks for a batch.
    """

    def __init__(self, stream: IterableDataset, blocks: int, generations: int, repeats: int, seed: int | None):
        self.stream = stream if seed is None else stream.shuffle(seed=seed)
        self.blocks, self.generations, self.repeats = blocks, generations, repeats

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for epoch in count():
            self.stream.set_epoch(epoch)
            rows = repeated(self.stream, self.blocks, self.generations, self.repeats)
            first = next(rows, None)
            if first is None:
                raise ValueError(too_few_blocks(len(list(self.stream)), self.blocks))
            yield first
            yield from rows


def repeated(rows: Iterable[Any], blocks: int, generations: int, repeats: int) -> Iterator[Any]:
    """Rows of full batches of `blocks`: each row `generations` times, and the batch `repeats` times."""
    rows = iter(rows)
    while len(batch := list(islice(rows, blocks))) == blocks:
        for _ in range(repeats):
            for row in batch:
                for _ in range(generations):
                    yield row


def check_enough_blocks(dataset: BlockDataset, blocks: int) -> None:
    """Raise a ValueError if a dataset or stream has less than `blocks` blocks, those of a batch of rollouts."""
    found = len(dataset) if isinstance(dataset, Dataset) else len(list(islice(iter(dataset), blocks)))
    if found < blocks:
        raise ValueError(too_few_blocks(found, blocks))


def too_few_blocks(found: int, blocks: int) -> str:
    """The message for texts that are too short for a batch."""
    return (
        f"The texts have {found} block{'' if found == 1 else 's'}, but a batch of rollouts needs {blocks}: "
        "`per_device_train_batch_size` * `steps_per_generation` * processes / `num_generations`. Give more text, "
        "lower one of the first two, or shorten the blocks (`context_length`)."
    )
