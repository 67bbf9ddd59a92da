# SPDX-FileCopyrightText: 2026 The sol_hf authors
# SPDX-License-Identifier: Apache-2.0

"""Text to token blocks: files of every kind, the blocks themselves, and error messages."""

import gzip
import json
import os
import subprocess
import sys

import datasets
import pytest
from datasets import Dataset, DatasetDict, IterableDataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from sol_hf.episodes import text_blocks
from sol_hf.episodes.begin_tokens import begin_tokens
from sol_hf.episodes.text_blocks import TextBlocks, load_text, pack_blocks


WORDS = [f"w{index}" for index in range(40)]
DOCUMENTS = [" ".join(WORDS[: 1 + 7 * index % 11]) for index in range(2500)] + [""]
EOS, BOS = 1, 2


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "cache" / "downloads")
    monkeypatch.setattr(datasets.config, "EXTRACTED_DATASETS_PATH", tmp_path / "cache" / "downloads" / "extracted")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def make_tokenizer(**special) -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(["<unk>", "</s>", "<s>", *WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", model_max_length=8, **special)


@pytest.fixture
def tokenizer():
    return make_tokenizer(eos_token="</s>", pad_token="</s>")


@pytest.fixture
def documents(tmp_path):
    """A file of 2,501 documents."""
    path = tmp_path / "documents.jsonl"
    path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(DOCUMENTS)))
    return path


def tokens_of(text: str) -> list[int]:
    return [3 + int(word[1:]) for word in text.split()]


def plain_blocks(texts: list[str], length: int, batch: int = 1000) -> list[list[int]]:
    """The blocks, by plain loops."""
    blocks = []
    for begin in range(0, len(texts), batch):
        tokens = []
        for text in texts[begin : begin + batch]:
            tokens += [*tokens_of(text), EOS] if text else []
        while len(tokens) >= length:
            blocks.append(tokens[:length])
            tokens = tokens[length:]
    return blocks


def rows(dataset) -> list[list[int]]:
    return [row["input_ids"] for row in dataset]


def stream(dataset: Dataset) -> IterableDataset:
    """A stream without information on its columns."""
    return IterableDataset.from_generator(lambda: iter(dataset))


def test_blocks_by_hand(tokenizer):
    blocks = pack_blocks(Dataset.from_dict({"text": ["w0 w1 w2", "w3 w4", "", "w5 w6 w7 w8"]}), tokenizer, 5)
    assert blocks.column_names == ["input_ids"]
    assert rows(blocks) == [[3, 4, 5, EOS, 6], [7, EOS, 8, 9, 10]]


def test_a_tokenizer_without_an_end_token_adds_nothing():
    blocks = pack_blocks(Dataset.from_dict({"text": ["w0 w1 w2", "w3 w4"]}), make_tokenizer(), 2)
    assert rows(blocks) == [[3, 4], [5, 6]]


def with_template(template: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts special tokens around every text, as `<s> $A </s>`."""
    tokenizer = make_tokenizer(eos_token="</s>", bos_token="<s>")
    special = [("<s>", BOS), ("</s>", EOS)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=template, special_tokens=special)
    return tokenizer


class TestBeginTokens:
    """Blocks begin as the tokenizer begins texts."""

    @pytest.mark.parametrize(
        ("template", "begin"),
        [("$A", []), ("$A </s>", []), ("<s> $A", [BOS]), ("<s> $A </s>", [BOS]), ("<s> </s> $A", [BOS, EOS])],
    )
    def test_what_a_tokenizer_does_is_found_by_trying(self, template, begin):
        assert begin_tokens(with_template(template)) == begin

    def test_a_bos_token_that_is_not_added_does_not_count(self):
        assert begin_tokens(make_tokenizer(bos_token="<s>")) == []
        adding = make_tokenizer(bos_token="<s>")
        adding.add_bos_token = True
        assert begin_tokens(adding) == [BOS]

    @pytest.mark.parametrize("streamed", [False, True])
    @pytest.mark.parametrize("template", ["<s> $A", "<s> $A </s>"])
    def test_every_block_begins_with_bos_and_only_there(self, template, streamed):
        texts = Dataset.from_dict({"text": ["w0 w1 w2", "w3 w4", "", "w5 w6 w7 w8 w9"]})
        blocks = pack_blocks(stream(texts) if streamed else texts, with_template(template), 5)
        assert rows(blocks) == [[BOS, 3, 4, 5, EOS], [BOS, 6, 7, EOS, 8], [BOS, 9, 10, 11, 12]]

    def test_without_bos_blocks_are_as_ever(self, tokenizer):
        texts = Dataset.from_dict({"text": ["w0 w1 w2", "w3 w4", "", "w5 w6 w7 w8"]})
        assert rows(pack_blocks(texts, with_template("$A </s>"), 5)) == rows(pack_blocks(texts, tokenizer, 5))

    def test_ready_blocks_without_bos_are_warned_about(self, caplog):
        for begin, warned in ((3, True), (BOS, False)):
            caplog.clear()
            ready = Dataset.from_dict({"input_ids": [[begin, 6], [begin, 8]]})
            assert len(pack_blocks(ready, with_template("<s> $A"), 2)) == 2
            assert ("begins every text with [2], but the rows" in caplog.text) == warned

    def test_a_block_needs_room_for_text(self):
        with pytest.raises(ValueError, match="no room beside the 1 that begin every text"):
            pack_blocks(Dataset.from_dict({"text": ["w0 w1"]}), with_template("<s> $A"), 1)
        with pytest.raises(ValueError, match="3 tokens, too few for a block of 5 beside the 1 that begin it"):
            pack_blocks(Dataset.from_dict({"text": ["w0 w1"]}), with_template("<s> $A"), 5)


class TestDocuments:
    """The documents of blocks, for standard errors."""

    @pytest.mark.parametrize("streamed", [False, True])
    def test_a_block_belongs_to_the_document_that_it_ends_in(self, tokenizer, streamed):
        texts = Dataset.from_dict({"text": ["w0 w1 w2 w3 w4 w5", "w3", "", "w5 w6 w7 w8 w9"]})
        blocks = pack_blocks(stream(texts) if streamed else texts, tokenizer, 3, documents=True)
        assert rows(blocks) == [[3, 4, 5], [6, 7, 8], [EOS, 6, EOS], [8, 9, 10], [11, 12, EOS]]
        assert [row["document"] for row in blocks] == [0, 0, 1, 3, 3]
        found = TextBlocks.of(list(blocks))
        assert found.tokens.shape == (5, 3) and found.documents.tolist() == [0, 0, 1, 3, 3]

    def test_documents_are_counted_over_the_whole_dataset(self, tokenizer, documents):
        blocks = pack_blocks(load_text(documents), tokenizer, 16, num_proc=2, documents=True)
        assert rows(blocks) == plain_blocks(DOCUMENTS, 16)
        assert max(row["document"] for row in blocks) > 2400

    @pytest.mark.parametrize("streamed", [False, True])
    def test_ready_blocks_name_their_documents_or_are_one_each(self, tokenizer, streamed):
        for columns, expected in (({}, [0, 1]), ({"document": [7, 7]}, [7, 7])):
            ready = Dataset.from_dict({"input_ids": [[5, 6], [7, 8]], **columns})
            blocks = pack_blocks(stream(ready) if streamed else ready, tokenizer, 2, documents=True)
            assert [row["document"] for row in blocks] == expected and rows(blocks) == [[5, 6], [7, 8]]


@pytest.mark.parametrize("length", [1, 4, 113])
def test_blocks_equal_plain_loops(tokenizer, documents, length):
    blocks = rows(pack_blocks(load_text(documents), tokenizer, length))
    assert len(blocks) > 100
    assert blocks == plain_blocks(DOCUMENTS, length)


@pytest.mark.parametrize("source", ["file", "columns unknown"])
def test_a_stream_gives_the_same_blocks(tokenizer, documents, source):
    stored = load_text(documents)
    streamed = load_text(documents, streaming=True) if source == "file" else stream(stored)
    assert (streamed.column_names is None) == (source == "columns unknown")
    blocks = pack_blocks(streamed, tokenizer, 16)
    assert isinstance(blocks, IterableDataset)
    assert blocks.column_names == ["input_ids"]
    expected = rows(pack_blocks(stored, tokenizer, 16))
    assert rows(blocks) == expected
    assert rows(blocks) == expected


def test_a_stream_goes_through_a_data_loader(tokenizer, documents):
    from torch.utils.data import DataLoader

    blocks = pack_blocks(load_text(documents, streaming=True), tokenizer, 16).with_format("torch")
    batch = next(iter(DataLoader(blocks, batch_size=4)))["input_ids"]
    assert batch.tolist() == plain_blocks(DOCUMENTS, 16)[:4]


def test_the_number_of_processes_does_not_matter(tokenizer, documents):
    dataset = load_text(documents)
    two = pack_blocks(dataset, tokenizer, 16, num_proc=2)
    assert len(list((documents.parent / "cache").rglob("*_of_00002.arrow"))) == 2
    assert rows(two) == plain_blocks(DOCUMENTS, 16)
    assert pack_blocks(dataset, tokenizer, 16)._fingerprint == two._fingerprint


def test_a_second_call_reads_the_cache(tokenizer, documents, monkeypatch):
    first = pack_blocks(load_text(documents), tokenizer, 16)
    assert first.cache_files
    tokenizer(["w0", "w1 w2"], padding=True, truncation=True, max_length=3)
    monkeypatch.setattr(text_blocks.TokenizeDocuments, "__call__", None)
    monkeypatch.setattr(text_blocks.CutBlocks, "__call__", None)
    second = pack_blocks(load_text(documents), tokenizer, 16)
    assert second._fingerprint == first._fingerprint
    assert second.cache_files == first.cache_files
    assert rows(second) == rows(first)


def test_other_blocks_are_not_taken_from_the_cache(documents, tokenizer):
    dataset = load_text(documents)
    variants = [
        pack_blocks(dataset, tokenizer, 16),
        pack_blocks(dataset, tokenizer, 17),
        pack_blocks(dataset, make_tokenizer(), 16),
        pack_blocks(dataset.select(range(2000)), tokenizer, 16),
    ]
    assert len({variant._fingerprint for variant in variants}) == len({str(rows(v)) for v in variants}) == 4


FINGERPRINT = """
import sys
import datasets
sys.path.insert(0, sys.argv[1])
datasets.disable_progress_bars()
from test_text_blocks import load_text, make_tokenizer, pack_blocks
print(pack_blocks(load_text(sys.argv[2]), make_tokenizer(eos_token="</s>"), 16)._fingerprint)
"""


@pytest.mark.slow
def test_another_process_finds_the_same_cache(documents):
    here = pack_blocks(load_text(documents), make_tokenizer(eos_token="</s>"), 16)
    environment = os.environ | {"HF_DATASETS_CACHE": str(datasets.config.HF_DATASETS_CACHE), "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-c", FINGERPRINT, os.path.dirname(__file__), str(documents)]
    there = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert there.stdout.strip() == here._fingerprint, there.stderr


def test_a_format_set_by_the_user_does_not_matter(tokenizer):
    dataset = Dataset.from_dict({"text": ["w0 w1 w2"], "id": [5]}).with_format("torch")
    assert rows(pack_blocks(dataset, tokenizer, 2)) == [[3, 4], [5, EOS]]


def test_another_text_column(tokenizer):
    dataset = Dataset.from_dict({"text": ["w9"], "body": ["w0 w1"]})
    assert rows(pack_blocks(dataset, tokenizer, 3, text_column="body")) == [[3, 4, EOS]]


@pytest.mark.parametrize("streamed", [False, True])
def test_ready_blocks_are_used_as_they_are(tokenizer, streamed):
    ready = Dataset.from_dict({"input_ids": [[5, 6], [7, 8]], "source": ["a", "b"]})
    blocks = pack_blocks(stream(ready) if streamed else ready, tokenizer, 2)
    assert rows(blocks) == [[5, 6], [7, 8]]
    assert set(next(iter(blocks))) == {"input_ids"}


def test_text_is_preferred_to_tokens(tokenizer):
    dataset = Dataset.from_dict({"text": ["w0 w1"], "input_ids": [[9, 9, 9]]})
    assert rows(pack_blocks(dataset, tokenizer, 3)) == [[3, 4, EOS]]


@pytest.mark.parametrize("streamed", [False, True])
def test_ready_rows_of_another_length(tokenizer, streamed):
    ready = Dataset.from_dict({"input_ids": [[5, 6, 7], [7, 8]]})
    with pytest.raises(ValueError, match="a row of 3 tokens, but blocks have 2"):
        pack_blocks(stream(ready) if streamed else ready, tokenizer, 2)


def test_a_later_ready_row_of_another_length(tokenizer):
    ready = Dataset.from_dict({"input_ids": [[5, 6], [7, 8], [9]]})
    with pytest.raises(ValueError, match="a row of 1 tokens, but blocks have 2"):
        pack_blocks(ready, tokenizer, 2)
    assert rows(pack_blocks(ready.select([1, 0]), tokenizer, 2)) == [[7, 8], [5, 6]]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        (
            {"texts": ["w0"], "id": [1]},
            {},
            "no column 'text'; the columns are texts, id: set `text_column` to 'texts'",
        ),
        ({"id": [1]}, {}, "the columns are id: set `text_column` to the one that holds"),
        ({"text": []}, {}, "has no rows"),
        ({"text": ["w0 w1", "w2"]}, {}, "The text has 5 tokens, too few for a block of 6"),
        ({"text": ["", ""]}, {}, "The text has 0 tokens"),
        ({"text": ["w0"] * 2500}, {"block_length": 2001}, "no 1000 documents together have the 2001"),
        ({"text": ["w0 " * 9, None]}, {}, "Row 1 of column `text` is not text but NoneType"),
        ({"text": [3, 4]}, {}, r"Row 0 of column `text` is not text but int \(3\): drop such rows"),
        ({"text": ["w0"]}, {"max_positions": 5}, "Blocks of 6 tokens are longer than the base's 5 positions: lower"),
        ({"text": ["w0"]}, {"block_length": 0}, "at least 1, got 0"),
    ],
)
def test_wrong_datasets_are_named(tokenizer, streamed, columns, options, message):
    dataset = Dataset.from_dict(columns)
    with pytest.raises(ValueError, match=message):
        pack_blocks(stream(dataset) if streamed else dataset, tokenizer, **({"block_length": 6} | options))


def test_entries_that_are_not_text_are_named_from_several_processes(tokenizer):
    dataset = Dataset.from_dict({"text": ["w0"] * 30 + [None]})
    with pytest.raises(ValueError, match="Row 30 of column `text` is not text but NoneType"):
        pack_blocks(dataset, tokenizer, 6, num_proc=2)


def write(path, texts: list[str]) -> str:
    """Write documents in the format of the suffix."""
    kind = path.name.removesuffix(".gz").rsplit(".", 1)[1]
    if kind == "parquet":
        Dataset.from_dict({"text": texts}).to_parquet(path)
        return str(path)
    content = {
        "jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        "json": json.dumps([{"text": text} for text in texts]),
        "csv": "text\n" + "".join(f'"{text}"\n' for text in texts),
        "txt": "\n\n".join(texts),
    }[kind]
    path.write_bytes(gzip.compress(content.encode()) if path.suffix == ".gz" else content.encode())
    return str(path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(
    "name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.json.gz", "a.csv", "a.csv.gz", "a.parquet", "a.txt", "A.TXT.gz"]
)
def test_files_of_every_kind(tmp_path, name, streaming):
    texts = ["w0 w1", "w2\nw3"]
    dataset = load_text(write(tmp_path / name.lower(), texts), split="validation", streaming=streaming)
    assert isinstance(dataset, IterableDataset if streaming else Dataset)
    assert [row["text"] for row in dataset] == (["w0 w1\n\nw2\nw3"] if "txt" in name.lower() else texts)


def test_several_files_in_the_order_given(tmp_path):
    paths = [write(tmp_path / f"{name}.txt", [f"text of {name}"]) for name in "ba"]
    dataset = load_text([tmp_path / "b.txt", paths[1]], text_column="body")
    assert dataset["body"][:] == ["text of b", "text of a"]


def test_a_part_of_a_file(tmp_path):
    assert len(load_text(write(tmp_path / "a.jsonl", DOCUMENTS[:10]), split="train[:40%]")) == 4


def test_a_folder(tmp_path):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data" / "train.jsonl", ["w0", "w1"])
    assert load_text(tmp_path / "data")["text"][:] == ["w0", "w1"]


def test_datasets_pass_through():
    dataset = Dataset.from_dict({"text": ["w0"]})
    streamed = stream(dataset)
    assert load_text(dataset) is dataset
    assert load_text(streamed) is streamed


@pytest.mark.parametrize("streaming", [False, True])
def test_other_strings_are_ids_on_the_hub(monkeypatch, streaming):
    calls = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: calls.append((args, kwargs)))
    load_text("user/texts-v1.5", split="test", streaming=streaming)
    assert calls == [(("user/texts-v1.5",), {"split": "test", "streaming": streaming})]


@pytest.mark.parametrize(
    "source", ["missing.jsonl", "some/missing.txt.gz", "./missing", "/no/such/file", "~/nothing.x"]
)
def test_a_missing_file_is_not_looked_for_on_the_hub(monkeypatch, source):
    monkeypatch.setattr(datasets, "load_dataset", None)
    for given_as in (source, [source]):
        with pytest.raises(FileNotFoundError, match="There is no file .*: check the path"):
            load_text(given_as)


def test_wrong_sources_are_named(tmp_path):
    text, rows_file = write(tmp_path / "a.txt", ["w0"]), write(tmp_path / "a.jsonl", ["w0"])
    (tmp_path / "a.docx").write_text("w0")
    (tmp_path / "a.parquet.gz").write_text("w0")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl.gz").write_bytes(gzip.compress(b""))
    for source, message in [
        (
            str(tmp_path / "a.docx"),
            r"unknown suffix '.docx'; supported are .jsonl, .json, .txt, .csv, .parquet, and .gz",
        ),
        (tmp_path / "a.parquet.gz", r"unknown suffix '.gz'"),
        (tmp_path / "empty.jsonl", r"empty.jsonl is empty: leave it out"),
        (tmp_path / "blank.jsonl.gz", r"blank.jsonl.gz has no rows"),
        ([text, rows_file], r"different kinds \(json, text\)"),
        ([text, str(tmp_path)], "is a folder: list its files"),
        ([], "The list of files is empty"),
        (3, "Text comes from a dataset, a path, a list of paths or a Hub id, got int"),
        ([3], "got list"),
        (
            DatasetDict({"test": Dataset.from_dict({"text": ["w0"]})}),
            "dictionary of the splits test: pass one of them",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            load_text(source)
