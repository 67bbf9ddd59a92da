# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Cuts text into token blocks of equal length, for training and evaluation.

documents   "a b c"    "d e"        ""           "f g h i"
tokens      a b c eos  d e eos      (nothing)    f g h i eos
blocks of 5 a b c eos d | e eos f g h | (i eos: remainder, dropped)

Documents are tokenized in parallel. A single process then joins `PACKED_DOCUMENTS` documents at a time and cuts them
into blocks. The blocks therefore do not depend on the number of processes, and a stream gives the same blocks as a
dataset in memory. The remainder of every `PACKED_DOCUMENTS` documents, less than a block, is dropped.

If the tokenizer begins texts with BOS, every block begins with it, also one from the middle of a document: a model
that was trained with BOS has not seen a context without it. Between the documents of a block there is EOS only:

blocks of 5 bos a b c eos | bos d e eos f | (g h i eos: remainder, dropped)
"""

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import accumulate, chain, islice
from pathlib import Path
from typing import Any, TypeAlias

import datasets
import pyarrow.compute as pc
import torch
from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .begin_tokens import begin_tokens


logger = logging.get_logger(__name__)

TOKENS, DOCUMENT = "input_ids", "document"
FEATURES = Features({TOKENS: List(Value("int32")), DOCUMENT: Value("int64")})
TOKENIZED_DOCUMENTS, PACKED_DOCUMENTS = 100, 1000
LOADERS = {".jsonl": "json", ".json": "json", ".txt": "text", ".csv": "csv", ".parquet": "parquet"}
COMPRESSIBLE = tuple(suffix for suffix in LOADERS if suffix != ".parquet")


@dataclass(frozen=True)
class TextBlocks:
    """Blocks of a text, and the documents that they are from.

    Args:
        tokens (`torch.LongTensor` of shape `(blocks, block_length)`): Token ids.
        documents (`torch.LongTensor` of shape `(blocks,)`): Index of the document that a block ends in. Blocks of one
            document are not independent of each other.
    """

    tokens: torch.Tensor
    documents: torch.Tensor

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]]) -> "TextBlocks":
        """Rows of [`pack_blocks`] with `documents`."""
        return cls(torch.tensor([row[TOKENS] for row in rows]), torch.tensor([row[DOCUMENT] for row in rows]))


TextSource: TypeAlias = Dataset | IterableDataset | str | os.PathLike | Sequence[str | os.PathLike]


def load_text(
    source: TextSource, split: str = "train", streaming: bool = False, text_column: str = "text"
) -> Dataset | IterableDataset:
    """Load text from files or from the Hub.

    Args:
        source (`Dataset`, `IterableDataset`, `str`, `os.PathLike` or a list of paths): A dataset is returned as it is.
            Files end in `.jsonl`, `.json`, `.txt`, `.csv` (each also with `.gz`) or `.parquet`; a `.txt` file is one
            document. A string that is not a path is the id of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split to load, also as `"train[:1%]"`. Files are read as
            this split.
        streaming (`bool`, *optional*, defaults to `False`): Read during iteration, without a cache on disk.
        text_column (`str`, *optional*, defaults to `"text"`): Name for the column of `.txt` files.

    Raises:
        FileNotFoundError: if a path does not exist.
        ValueError: if files are empty, of different kinds, or of a kind that is not supported.
    """
    if isinstance(source, Dataset | IterableDataset):
        return source
    if isinstance(source, dict):
        names = ", ".join(map(str, source))
        raise ValueError(f"This is a dictionary of the splits {names}: pass one of them, e.g. `dataset[{split!r}]`.")
    if isinstance(source, str) and not _is_local(source):
        return datasets.load_dataset(source, split=split, streaming=streaming)
    paths = [source] if isinstance(source, str | os.PathLike) else source
    if not isinstance(paths, Sequence) or not all(isinstance(path, str | os.PathLike) for path in paths):
        raise ValueError(
            f"Text comes from a dataset, a path, a list of paths or a Hub id, got {type(source).__name__}."
        )
    files = [Path(path).expanduser() for path in paths]
    if len(files) == 1 and files[0].is_dir():
        return datasets.load_dataset(str(files[0]), split=split, streaming=streaming)
    return _load_files(files, split, streaming, text_column)


def _is_local(source: str) -> bool:
    """Whether a string means a path rather than a dataset on the Hub."""
    named_like_a_path = source.startswith(("./", "../", "/", "~")) or _suffix(Path(source)) in LOADERS
    return named_like_a_path or Path(source).exists()


def _suffix(path: Path) -> str:
    """The suffix with the kind of a file; for a compressed file of a supported kind, the suffix before `.gz`."""
    name = path.name.lower()
    content = Path(name.removesuffix(".gz")).suffix
    return content if content in COMPRESSIBLE else Path(name).suffix


def _load_files(files: list[Path], split: str, streaming: bool, text_column: str) -> Dataset | IterableDataset:
    if not files:
        raise ValueError("The list of files is empty: give at least one path.")
    for path in files:
        if not path.exists():
            raise FileNotFoundError(f"There is no file {path}: check the path (a Hub id looks like `user/dataset`).")
        if _suffix(path) not in LOADERS or path.is_dir():
            what = "is a folder: list its files" if path.is_dir() else f"has the unknown suffix {path.suffix!r}"
            endings = ", ".join(LOADERS)
            raise ValueError(f"{path} {what}; supported are {endings}, and .gz of all but .parquet.")
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty: leave it out.")
    kinds = sorted({LOADERS[_suffix(path)] for path in files})
    if len(kinds) > 1:
        raise ValueError(f"The files are of different kinds ({', '.join(kinds)}): load them one kind at a time.")
    arguments: dict[str, Any] = {}
    if kinds == ["text"]:
        arguments = {"sample_by": "document", "features": Features({text_column: Value("string")})}
    name = re.split(r"[\[+]", split)[0]
    try:
        return datasets.load_dataset(
            kinds[0], data_files={name: [str(path) for path in files]}, split=split, streaming=streaming, **arguments
        )
    except StopIteration as error:  # raised by the JSON loader if there are no rows
        raise ValueError(f"{', '.join(map(str, files))} has no rows: nothing to read.") from error


class TokenizeDocuments:
    """Batched map function: text to tokens, with the end-of-sequence token after every document that is not empty.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base.
        text_column (`str`): Column to read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text_column: str):
        self.tokenizer = tokenizer
        self.text_column = text_column

    def __call__(self, batch: dict[str, list], indices: list[int]) -> dict[str, list]:
        texts = batch[self.text_column]
        for index, text in zip(indices, texts, strict=True):
            if not isinstance(text, str):
                raise ValueError(
                    f"Row {index} of column `{self.text_column}` is not text but {type(text).__name__} ({text!r:.60}):"
                    " drop such rows with `dataset.filter`, or convert them."
                )
        ids = self.tokenizer(
            texts,
            add_special_tokens=False,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            verbose=False,
        )[TOKENS]
        eos = self.tokenizer.eos_token_id
        ended = [document + [eos] if document and eos is not None else document for document in ids]
        return {TOKENS: ended, DOCUMENT: indices}


class CutBlocks:
    """Batched map function: joins the documents of a batch and cuts them into blocks, dropping the remainder.

    Args:
        block_length (`int`): Tokens in a block.
        begin (`Sequence[int]`): Special tokens at the begin of every block, which are part of its length.
        documents (`bool`): Also return the document that each block ends in.
    """

    def __init__(self, block_length: int, begin: Sequence[int], documents: bool):
        self.block_length, self.begin, self.documents = block_length, list(begin), documents

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        tokens = list(chain.from_iterable(batch[TOKENS]))
        length = self.block_length - len(self.begin)
        starts = range(0, len(tokens) - length + 1, length)
        blocks = {TOKENS: [self.begin + tokens[start : start + length] for start in starts]}
        if not self.documents:
            return blocks
        ends = list(accumulate(map(len, batch[TOKENS])))
        last = [bisect_right(ends, start + length - 1) for start in starts]
        return blocks | {DOCUMENT: [batch[DOCUMENT][index] for index in last]}


def pack_blocks(
    dataset: Dataset | IterableDataset,
    tokenizer: PreTrainedTokenizerBase,
    block_length: int,
    text_column: str = "text",
    num_proc: int | None = None,
    max_positions: int | None = None,
    documents: bool = False,
) -> Dataset | IterableDataset:
    """Turn a dataset of documents into one of token blocks.

    A dataset with a column `input_ids` and without a text column is assumed to consist of blocks already. There is a
    warning if they lack the special tokens with which the tokenizer begins texts.

    Args:
        dataset (`Dataset` or `IterableDataset`): Documents, as returned by [`load_text`].
        tokenizer (`PreTrainedTokenizerBase`): Tokenizer of the base. If it begins texts with special tokens (BOS),
            every block begins with them. Its end-of-sequence token, if it has one, is added after every document.
        block_length (`int`): Tokens in a block.
        text_column (`str`, *optional*, defaults to `"text"`): Column that holds the text.
        num_proc (`int`, *optional*): Processes that tokenize; not for streams. The blocks are the same for any number.
        max_positions (`int`, *optional*): Number of positions of the base, the largest length of a block.
        documents (`bool`, *optional*, defaults to `False`): Also a column `document`, with the index of the document
            that a block ends in; see [`TextBlocks`]. Blocks of the input without that column count as one document
            each.

    Returns:
        `Dataset` or `IterableDataset`, like the input: One column, `input_ids`, with lists of `block_length` tokens,
        and `document` if asked for.

    Raises:
        ValueError: if the dataset has no rows, no such column, values that are not text or not enough text for a
            block, or if a block is longer than `max_positions`.
    """
    _check_length(block_length, max_positions)
    streamed = isinstance(dataset, IterableDataset)
    dataset = dataset.with_format(None)
    columns = _column_names(dataset)
    begin = begin_tokens(tokenizer) if tokenizer is not None else []
    if TOKENS in columns and text_column not in columns:
        return _ready_blocks(dataset, block_length, begin, documents)
    _check_column(text_column, columns)
    if block_length <= len(begin):
        raise ValueError(
            f"Blocks of {block_length} tokens have no room beside the {len(begin)} that begin every text: make them "
            "longer."
        )
    kept = Features({name: FEATURES[name] for name in (TOKENS, DOCUMENT)[: 1 + documents]})
    tokenizing = {"batched": True, "features": FEATURES, "batch_size": TOKENIZED_DOCUMENTS}
    tokenizing |= {"with_indices": True, "remove_columns": columns}
    packing = {"batched": True, "features": kept, "batch_size": PACKED_DOCUMENTS, "remove_columns": [TOKENS, DOCUMENT]}
    if not streamed:
        tokenizing |= {"num_proc": num_proc, "desc": "Tokenizing"}
        packing |= {"desc": f"Packing blocks of {block_length} tokens"}
    tokens = dataset.map(TokenizeDocuments(tokenizer, text_column), **tokenizing)
    blocks = tokens.map(CutBlocks(block_length, begin, documents), **packing)
    if _first_row(blocks) is None:
        raise ValueError(_too_short(tokens, block_length, len(begin)))
    return blocks


def text_beginnings(
    source: str, tokenizer: PreTrainedTokenizerBase, length: int, texts: int, every: int = 1
) -> torch.Tensor:
    """The first tokens of the first texts that have so many, `(texts, length)`.

    Args:
        source (`str`): As for [`load_text`], with the texts in a column `text`.
        tokenizer (`PreTrainedTokenizerBase`): Of the base.
        length (`int`): Tokens of a text.
        texts (`int`): Number of texts.
        every (`int`, *optional*, defaults to 1): Use every n-th text of the source.

    Raises:
        ValueError: if the source has fewer texts of that length.
    """
    rows = islice(load_text(source, streaming=True), 0, None, every)
    ids = (tokenizer(row["text"]).input_ids for row in rows)
    found = list(islice((x[:length] for x in ids if len(x) >= length), texts))
    if len(found) < texts:
        raise ValueError(
            f"{source} has {len(found)} texts of {length} tokens, not {texts}: give more, or ask for fewer."
        )
    return torch.tensor(found)


def _check_length(block_length: int, max_positions: int | None) -> None:
    if block_length < 1:
        raise ValueError(f"`block_length` must be at least 1, got {block_length}.")
    if max_positions is not None and block_length > max_positions:
        raise ValueError(
            f"Blocks of {block_length} tokens are longer than the base's {max_positions} positions: lower "
            "`context_length` or `episode_length`."
        )


def _check_column(name: str, columns: Sequence[str]) -> None:
    if name not in columns:
        close = get_close_matches(name, columns, n=1)
        hint = f"set `text_column` to {close[0]!r}?" if close else "set `text_column` to the one that holds the text."
        raise ValueError(f"There is no column {name!r}; the columns are {', '.join(columns)}: {hint}")


def _first_row(dataset: Dataset | IterableDataset) -> dict[str, Any] | None:
    return next(iter(dataset), None)


def _column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """Names of the columns; those of a stream without that information are taken from its first row."""
    first = _first_row(dataset)
    if first is None:
        split = f" (split {str(dataset.split)!r})" if dataset.split is not None else ""
        raise ValueError(f"The dataset{split} has no rows: choose another split or file.")
    return list(dataset.column_names or first)


def _ready_blocks(
    dataset: Dataset | IterableDataset, block_length: int, begin: Sequence[int], documents: bool
) -> Dataset | IterableDataset:
    """Check that rows are blocks: all rows of a dataset, the first row of a stream."""
    blocks, first = dataset.select_columns(TOKENS), _first_row(dataset) or {}
    if isinstance(blocks, IterableDataset):
        lengths = {len(next(iter(blocks))[TOKENS])}
    else:
        batches = blocks.with_format("arrow").iter(batch_size=10 * PACKED_DOCUMENTS)
        lengths = set().union(*(pc.unique(pc.list_value_length(batch[TOKENS])).to_pylist() for batch in batches))
    wrong = sorted(length or 0 for length in lengths - {block_length})
    if wrong:
        raise ValueError(
            f"`{TOKENS}` has a row of {wrong[0]} tokens, but blocks have {block_length}: cut the rows to that length, "
            "or give a text column."
        )
    if list(first[TOKENS][: len(begin)]) != list(begin):
        logger.warning(
            f"The tokenizer begins every text with {list(begin)}, but the rows of `{TOKENS}` do not: a base that was "
            "trained with these tokens predicts worse without them. Give a text column, or begin the rows with them."
        )
    if not documents:
        return blocks
    if DOCUMENT in first:
        return dataset.select_columns([TOKENS, DOCUMENT])
    return blocks.map(_own_document, with_indices=True)


def _own_document(row: dict[str, Any], index: int) -> dict[str, Any]:
    return row | {DOCUMENT: index}


def _too_short(tokens: Dataset | IterableDataset, block_length: int, begin: int) -> str:
    number, needed = sum(len(row[TOKENS]) for row in tokens), block_length - begin
    beside = f" beside the {begin} that begin it" if begin else ""
    if number < needed:
        return (
            f"The text has {number} tokens, too few for a block of {block_length}{beside}: give more text or shorter "
            "blocks."
        )
    return (
        f"The text has {number} tokens, but no {PACKED_DOCUMENTS} documents together have the {needed} of a block: "
        "join the documents, or make blocks shorter."
    )


def at_most_of_each(rows: Iterable[dict[str, Any]], number: int | None) -> Iterator[dict[str, Any]]:
    """The first blocks of every document, at most `number` of each; all blocks without a number.

    Args:
        rows (`Iterable[dict]`): From [`pack_blocks`] with `documents=True`, if there is a number.
        number (`int`, *optional*): Blocks of a document.
    """
    taken: Counter[int] = Counter()
    for row in rows:
        if number is not None:
            taken[row[DOCUMENT]] += 1
            if taken[row[DOCUMENT]] > number:
                continue
        yield row
