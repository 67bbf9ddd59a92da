# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Standard errors and resamples of means over blocks, for which the blocks of one document are not independent.

Neighbouring blocks of a document are about the same subject. Errors of means that treat them as independent are too
small. So documents are resampled, not blocks, and deviations are summed within documents first:

    blocks      b b b | b | b b          standard error of the mean of n blocks in G documents:
    documents     0     1    2             sqrt(G / (G - 1) * sum over documents of (sum of deviations)^2) / n

Without documents every block is one of its own, which gives the ordinary standard error. If all blocks are of a single
document, they are treated as independent with a warning, since there is nothing else to estimate an error from.
"""

from collections.abc import Sequence

import numpy as np
from transformers.utils import logging


logger = logging.get_logger(__name__)

RESAMPLES = 2000
TAILS = (2.5, 97.5)
"""Percentiles of an interval."""


def clusters_of(documents: Sequence[int] | None, blocks: int) -> np.ndarray:
    """The number of the cluster of every block, from 0, by first appearance.

    Args:
        documents (`Sequence[int]`, *optional*): The document of every block.
        blocks (`int`): Number of blocks.

    Raises:
        ValueError: if there is another number of documents than of blocks.
    """
    if documents is None:
        return np.arange(blocks)
    if len(documents) != blocks:
        raise ValueError(f"There are {len(documents)} documents for {blocks} blocks: give one per block.")
    number: dict[int, int] = {}
    found = np.array([number.setdefault(int(document), len(number)) for document in documents])
    if len(number) == 1:
        logger.warning_once(
            "All blocks are of one document, so that errors and intervals treat them as independent. The real ones "
            "are larger: give texts of several documents, and take few blocks of each (`--per-document 1`, in a "
            "training `--eval_per_document 1`)."
        )
        return np.arange(blocks)
    return found


def standard_error(values: Sequence[float], documents: Sequence[int] | None = None) -> float:
    """Standard error of the mean of two or more values.

    Args:
        values (`Sequence[float]`): One per block.
        documents (`Sequence[int]`, *optional*): The document of every block.
    """
    return float(mean_and_error(np.asarray(values, dtype=np.float64)[:, None], documents)[1][0])


def mean_and_error(values: np.ndarray, documents: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Mean over blocks and its standard error, each `(columns,)`.

    Args:
        values (`np.ndarray` of shape `(blocks, columns)`): With a single block the error is not a number.
        documents (`Sequence[int]`, *optional*): The document of every block.
    """
    cluster = clusters_of(documents, len(values))
    groups, mean = int(cluster.max()) + 1, values.mean(axis=0)
    if groups == 1:
        return mean, np.full_like(mean, np.nan)
    sums = np.zeros((groups, values.shape[1]))
    np.add.at(sums, cluster, values - mean)
    return mean, np.sqrt(groups / (groups - 1) * (sums**2).sum(axis=0)) / len(values)


def ratio_and_interval(
    above: Sequence[float], below: Sequence[float], documents: Sequence[int] | None = None, seed: int = 0
) -> tuple[float, float, float]:
    """The ratio of two means over the same blocks, and the 95% interval of a paired bootstrap over documents.

    Args:
        above (`Sequence[float]`): One per block.
        below (`Sequence[float]`): One per block; if their mean is 0, nothing is a number.
        documents (`Sequence[int]`, *optional*): The document of every block.
        seed (`int`, *optional*, defaults to 0): Of the bootstrap.
    """
    values = np.array([above, below], dtype=np.float64)
    drawn = resampled_means(values, RESAMPLES, seed, documents)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(np.divide(*values.mean(axis=1)))
        low, high = np.percentile(drawn[:, 0] / drawn[:, 1], TAILS)
    return ratio, float(low), float(high)


def interval_of(values: Sequence[float], documents: Sequence[int] | None = None, seed: int = 0) -> tuple[float, float]:
    """The 95% interval of a mean over blocks, by a bootstrap over documents; arguments as above."""
    drawn = resampled_means(np.asarray(values, dtype=np.float64)[None], RESAMPLES, seed, documents)
    low, high = np.percentile(drawn[:, 0], TAILS)
    return float(low), float(high)


def resampled_means(
    values: np.ndarray, resamples: int, seed: int, documents: Sequence[int] | None = None
) -> np.ndarray:
    """Means over documents resampled with replacement, the same ones for all rows (a paired bootstrap).

    Args:
        values (`np.ndarray` of shape `(rows, blocks)`): One number per row and block.
        resamples (`int`): Number of resamples.
        seed (`int`): Seed of the resampling.
        documents (`Sequence[int]`, *optional*): The document of every block; without them blocks are resampled.

    Returns:
        `np.ndarray` of shape `(resamples, rows)`: Of a resample, the mean over all blocks of its documents.
    """
    cluster = clusters_of(documents, values.shape[1])
    groups = int(cluster.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=resamples)
    sums = np.zeros((groups, len(values)))
    np.add.at(sums, cluster, values.T)
    return drawn @ sums / (drawn @ np.bincount(cluster))[:, None]
