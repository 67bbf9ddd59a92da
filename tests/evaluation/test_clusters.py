# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Standard errors and resamples over documents: neighbouring blocks of one document are not independent."""

import logging
import math

import numpy as np
import pytest

from sol_hf.evaluation.clusters import mean_and_error, resampled_means, standard_error


VALUES = [0.1, 0.2, 0.4, -0.3, 0.6]


def test_without_documents_it_is_the_ordinary_standard_error():
    expected = np.std(VALUES, ddof=1) / math.sqrt(len(VALUES))
    assert standard_error(VALUES) == pytest.approx(expected)
    assert standard_error(VALUES, [9, 4, 0, 2, 7]) == pytest.approx(expected)


def test_repeating_every_block_adds_no_certainty():
    copied = np.repeat(VALUES, 8)
    documents = np.repeat([3, 1, 4, 15, 9], 8)
    assert standard_error(copied, documents) == pytest.approx(standard_error(VALUES))
    assert standard_error(copied) < 0.4 * standard_error(VALUES)


def test_by_hand():
    mean = sum(VALUES) / 5
    sums = [VALUES[0] + VALUES[1] - 2 * mean, VALUES[2] - mean, VALUES[3] + VALUES[4] - 2 * mean]
    expected = math.sqrt(3 / 2 * sum(x * x for x in sums)) / 5
    assert standard_error(VALUES, [0, 0, 1, 2, 2]) == pytest.approx(expected)
    both = mean_and_error(np.stack([VALUES, np.zeros(5)], axis=1), [0, 0, 1, 2, 2])
    assert both[0].tolist() == pytest.approx([mean, 0]) and both[1].tolist() == pytest.approx([expected, 0])


def test_a_single_document_is_warned_about(caplog):
    logging.Logger.warning_once.cache_clear()
    assert standard_error(VALUES, [7] * 5) == standard_error(VALUES)
    assert "All blocks are of one document" in caplog.text


def test_another_number_of_documents_is_refused():
    with pytest.raises(ValueError, match="3 documents for 5 blocks"):
        standard_error(VALUES, [0, 1, 2])


def test_resampled_means_are_paired_and_spread_like_a_standard_error():
    values = np.random.default_rng(1).normal(size=(2, 200))
    drawn = resampled_means(np.stack([values[0], values[0] + 1, values[1]]), 2000, seed=0)
    np.testing.assert_allclose(drawn[:, 1] - drawn[:, 0], 1)
    assert drawn[:, 0].std() == pytest.approx(values[0].std() / math.sqrt(200), rel=0.1)
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 2])[0, 1]) < 0.2
    np.testing.assert_array_equal(drawn, resampled_means(np.stack([values[0], values[0] + 1, values[1]]), 2000, 0))


def test_documents_are_resampled_as_a_whole():
    values = np.repeat(np.random.default_rng(1).normal(size=40), 10)[None]
    documents = np.repeat(np.arange(40), 10)
    spread = resampled_means(values, 2000, 0, documents)[:, 0].std()
    assert spread == pytest.approx(standard_error(values[0], documents), rel=0.1)
    assert resampled_means(values, 2000, 0)[:, 0].std() < 0.4 * spread
    uneven = resampled_means(np.array([[1.0, 1.0, 1.0, 5.0]]), 500, 0, [0, 0, 0, 1])[:, 0]
    assert set(np.round(uneven, 9)) == {1.0, 2.0, 5.0}  # every block counts the same: (3 * 1 + 5) / 4
