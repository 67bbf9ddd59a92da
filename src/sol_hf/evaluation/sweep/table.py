# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""The tables of a sweep: one row per controller, budget and seed, and tables of the single blocks and trials.

    folder/sweep.parquet, sweep.csv    one row per controller, budget and seed
           blocks.parquet              loss and divergence of every block in every row, for paired comparisons
           trials.parquet              mean loss of every random schedule that was tried

Values of axes are in axis units, losses in nats per token. The axes of a table are found from its columns.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, Features, List, Value
from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from ...budget.axes import AXES, PUBLISHED_AXES
from ...episodes.stored_files import write_atomically


TARGET, REALISED = "target_", "realised_"
DOCUMENTS = "documents"
"""Column of `blocks` that may be empty: the document of every block."""
TABLES = ("sweep", "blocks", "trials")


def _columns(names: Iterable[str], kind: str) -> dict[str, Any]:
    return {name: Value(kind) for name in names}


def key_of(axes: Sequence[str]) -> tuple[str, ...]:
    """Columns that identify the rows of a table; in `trials` there is also `trial`."""
    return ("controller", "seed", *axes)


def columns_of(table: str, axes: Sequence[str]) -> dict[str, Any]:
    """Columns of a table and their types.

    In `sweep.parquet`, which `docs/pareto.md` explains, the column with the name of an axis holds the budget and
    `target_*` the target of the controller: the budget for the policy, the means that the policy realised for all
    others. A row of `blocks.parquet` has the values of all blocks, in order.

    Args:
        table (`str`): `sweep`, `blocks` or `trials`.
        axes (`Sequence[str]`): Names of the axes, in order.
    """
    key = {"controller": Value("string"), "seed": Value("int64"), **_columns(axes, "float64")}
    if table == "blocks":
        numbers = List(Value("float64"))
        return key | {"losses": numbers, "divergences": numbers, DOCUMENTS: List(Value("int64"))}
    if table == "trials":
        return key | {"trial": Value("int64"), "log_perplexity": Value("float64")}
    return {
        **key,
        **_columns([f"{TARGET}{axis}" for axis in axes], "float64"),
        **_columns([f"{REALISED}{axis}" for axis in axes], "float64"),
        **_columns(["net_keep", "perplexity", "log_perplexity", "log_perplexity_error", "divergence"], "float64"),
        **_columns(["budget_error", "refresh_overhead"], "float64"),
        **_columns(["blocks", "tokens"], "int64"),
        **_columns(["bytes_per_token", "flops_per_token", "nominal_bytes_per_token"], "float64"),
        **_columns(["dense_bytes_per_token", "dense_flops_per_token", "seconds"], "float64"),
    }


def axes_of(columns: Iterable[str]) -> tuple[str, ...]:
    """The axes of a table, from the names of its columns.

    They are the axes with a column `target_*` or `realised_*`. In a table without such columns, they are the columns
    with the name of a registered axis. In a table `sweep`, axes that are no longer registered are thus found, too.
    """
    columns = list(columns)
    named = [name.removeprefix(start) for start in (TARGET, REALISED) for name in columns if name.startswith(start)]
    return tuple(dict.fromkeys(named)) or tuple(name for name in columns if name in AXES)


class SweepError(ValueError):
    """A folder without the expected sweep: it contains another sweep, or an unfinished or damaged one."""


def make_table(name: str, rows: Sequence[Mapping[str, Any]], axes: Sequence[str]) -> Dataset:
    """Rows as a table.

    Args:
        name (`str`): `sweep`, `blocks` or `trials`.
        rows (`Sequence[Mapping[str, Any]]`): With all columns of that table; `documents` may be missing.
        axes (`Sequence[str]`): Names of the axes.
    """
    columns = columns_of(name, axes)
    values = {key: [row.get(key) if key == DOCUMENTS else row[key] for row in rows] for key in columns}
    return Dataset.from_dict(values, features=Features(columns))


def write_table(table: Dataset, path: Path) -> None:
    """Write a table atomically, in the format of the suffix of `path`, `.parquet` (with checksums) or `.csv`."""
    quiet = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        if path.suffix == ".csv":
            write_atomically(path, lambda partial: table.to_csv(str(partial)))
        else:
            write_atomically(path, lambda partial: table.to_parquet(str(partial), write_page_checksum=True))
    finally:
        if not quiet:
            enable_progress_bars()


def read_table(folder: str | os.PathLike, name: str = "sweep") -> Dataset:
    """A table of a finished sweep.

    Args:
        folder (`str` or `os.PathLike`): Folder of the sweep.
        name (`str`, *optional*, defaults to `"sweep"`): `sweep`, `blocks` or `trials`.

    Raises:
        SweepError: if it does not exist, is damaged, or has other columns.
    """
    path = Path(folder, f"{name}.parquet")
    again = "give the command of the sweep again, it continues where it stopped"
    if not path.exists():
        raise SweepError(f"{path} is not there: the sweep has not ended. Please {again}.")
    try:
        table = Dataset(pyarrow.parquet.read_table(path, page_checksum_verification=True))
    except (pyarrow.ArrowException, OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SweepError(f"{path} is damaged ({error}): please {again}.") from error
    axes = axes_of(table.column_names) or tuple(axis.name for axis in PUBLISHED_AXES)
    missing = sorted(set(columns_of(name, axes)) - {DOCUMENTS} - set(table.column_names))
    if missing:
        raise SweepError(
            f"{path} lacks the columns {', '.join(missing)}: it was not written by this version of sol_hf."
        )
    return table
