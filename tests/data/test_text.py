"""Tasks of texts: columns, splits, the options for sentences that are shared, and what the model gets."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import refusal
from token_task import DARK, LIGHT, write_token_task

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from autocompress.config import DataSection
from autocompress.data.sources import load_data
from autocompress.data.tables import read_table
from autocompress.data.task import Split, TaskData
from autocompress.data.text_task import Texts, selected, trim

SHARED = os.environ.get("AUTOCOMPRESS_DATA")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokens")
    write_token_task(path, rows=90)
    return path


@pytest.fixture
def whole(folder: Path) -> TaskData:
    return _load(folder, validation=str(folder / "dev.tsv"), test=str(folder / "test.tsv"))


def _load(folder: Path, name: str = "train.tsv", classification: bool = True, **options: Any) -> TaskData:
    options = {"tokenizer": str(folder / "model")} | options
    return load_data(DataSection(source=f"text:{folder / name}", **options), 0, classification=classification)


def _write(folder: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("sentence", "label")) -> None:
    write_token_task(folder, rows=9)
    (folder / "train.tsv").write_text("".join("\t".join(row) + "\n" for row in [header, *rows]))


def _texts(split: Split, folder: Path) -> list[str]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
    return [tokenizer.decode(row.tolist()) for row in split.inputs[0]]


def _lines(folder: Path, name: str) -> list[tuple[str, str]]:
    rows = (folder / name).read_text().splitlines()[1:]
    return [(text, label) for text, label in (row.split("\t") for row in rows)]


# A task


def test_examples_are_the_lines_of_the_files_in_their_order(folder: Path, whole: TaskData) -> None:
    for split, name in ((whole.train, "train.tsv"), (whole.validation, "dev.tsv"), (whole.test, "test.tsv")):
        expected = _lines(folder, name)
        assert _texts(split, folder) == [text for text, _ in expected]
        assert split.labels.tolist() == [int(label) for _, label in expected]
    assert whole.class_names == ("0", "1")


def test_labels_can_be_read_off_the_words(folder: Path, whole: TaskData) -> None:
    for text, label in zip(_texts(whole.train, folder), whole.train.labels, strict=True):
        words = text.split()
        assert (sum(w in LIGHT for w in words) > sum(w in DARK for w in words)) == bool(label)


def test_inputs_are_named_and_of_free_length(whole: TaskData) -> None:
    assert whole.by_name
    assert whole.input_names == ("input_ids", "attention_mask")
    assert whole.free_axes == {"input_ids": {1: "sequence"}, "attention_mask": {1: "sequence"}}


def test_a_batch_is_as_long_as_its_longest_example(whole: TaskData) -> None:
    lengths = whole.train.inputs[1].sum(1, dtype=torch.int64)
    for indices in torch.arange(len(whole.train)).split(4):
        ids, mask = whole.model_inputs(whole.train, indices)
        assert ids.dtype == mask.dtype == torch.int64
        assert ids.shape == mask.shape == (len(indices), int(lengths[indices].max()))
        assert torch.equal(mask.sum(1), lengths[indices])
        assert torch.equal(ids, whole.train.inputs[0][indices, : ids.shape[1]].long())


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_trimming_takes_padding_only_and_leaves_two_tokens(lengths: list[int]) -> None:
    mask = (torch.arange(9) < torch.tensor(lengths)[:, None]).to(torch.uint8)
    ids = torch.arange(9).int() * mask + 1
    trimmed_ids, trimmed_mask = trim((ids, mask))
    width = max(2, max(lengths))
    assert torch.equal(trimmed_ids, ids[:, :width].long())
    assert torch.equal(trimmed_mask, mask[:, :width].long())


def test_views_are_the_texts_themselves(whole: TaskData) -> None:
    indices = torch.arange(5)
    for view in (0, 3):
        assert all(map(torch.equal, whole.training_inputs(indices, view), whole.model_inputs(whole.train, indices)))


def test_fixed_inputs_are_real_tokens_at_any_length(whole: TaskData) -> None:
    for length in (4, 30):
        ids, mask = whole.fixed_inputs(1, length)
        assert ids.shape == mask.shape == (1, length)
        assert mask.all()
        assert ids.all()


def test_preprocessing_is_plain_and_says_how_a_text_becomes_an_input(folder: Path, whole: TaskData) -> None:
    facts = whole.preprocessing
    assert (facts["tokenizer"], facts["columns"], facts["max_length"]) == ("model", ["sentence"], 32)
    assert len(facts["tokenizer_sha256"]) == 64
    assert facts["padding"]["id"] == 0
    assert str(folder) not in str(facts)


# Splits and columns


def test_without_further_files_the_splits_are_cut_seeded_and_stratified(folder: Path) -> None:
    task = _load(folder)
    assert [len(task.train), len(task.validation), len(task.test)] == [63, 9, 18]
    assert torch.bincount(task.test.labels).tolist() == [9, 9]
    parts = [_texts(split, folder) for split in (task.train, task.validation, task.test)]
    assert sorted(text for part in parts for text in part) == sorted(text for text, _ in _lines(folder, "train.tsv"))
    assert _texts(_load(folder).test, folder) == parts[2]


def test_a_file_for_validation_leaves_test_to_be_cut(folder: Path) -> None:
    task = _load(folder, validation=str(folder / "dev.tsv"))
    assert [len(task.train), len(task.validation), len(task.test)] == [72, 30, 18]


def test_texts_as_labels_are_sorted_into_class_names(tmp_path: Path) -> None:
    _write(tmp_path, [("the sun", "pos"), ("the night", "neg")] * 20)
    task = _load(tmp_path)
    assert task.class_names == ("neg", "pos")
    for text, label in zip(_texts(task.train, tmp_path), task.train.labels, strict=True):
        assert ("sun" in text) == bool(label)


def test_pairs_of_texts(tmp_path: Path) -> None:
    _write(tmp_path, [("the sun", "a lamp", "1"), ("the night", "sun", "0")] * 20, ("first", "second", "same"))
    task = _load(tmp_path, text_columns=["first", "second"], label_column="same")
    assert task.input_names == ("input_ids", "attention_mask", "token_type_ids")
    assert _texts(task.train, tmp_path)[0] in ("the sun a lamp", "the night sun")
    _, mask, types = task.example_inputs(3)
    assert types[0].sum() == mask[0].sum() - 4
    assert task.preprocessing["columns"] == ["first", "second"]


def test_numbers_are_targets_where_the_study_has_a_loss(tmp_path: Path) -> None:
    _write(tmp_path, [("the sun", "0.5"), ("the night", "-3"), ("a cave", "2")] * 10)
    task = _load(tmp_path, classification=False)
    assert task.class_names == ()
    assert task.train.labels.dtype == torch.float32
    assert set(task.train.labels.tolist()) == {0.5, -3.0, 2.0}


def test_csv_and_parquet_give_the_same_as_tsv(folder: Path, whole: TaskData, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = read_table(folder / "train.tsv")
    table.to_csv(tmp_path / "train.csv", index=False)
    table.astype({"label": int}).to_parquet(tmp_path / "train.parquet")
    options = {name: str(folder / file) for name, file in (("validation", "dev.tsv"), ("test", "test.tsv"))}
    for name in ("train.csv", "train.parquet"):
        task = _load(tmp_path, name, tokenizer=str(folder / "model"), **options)
        assert torch.equal(task.train.inputs[0], whole.train.inputs[0])
        assert torch.equal(task.train.labels, whole.train.labels)


# Sentences that splits share


def test_validation_keeps_the_longest_texts_in_their_order(folder: Path) -> None:
    task = _load(folder, validation=str(folder / "dev.tsv"), validation_longest=12)
    texts = [text for text, _ in _lines(folder, "dev.tsv")]
    kept = sorted(sorted(range(len(texts)), key=lambda row: -len(texts[row]))[:12])
    assert _texts(task.validation, folder) == [texts[row] for row in kept]


def test_of_texts_of_one_length_the_first_are_kept(tmp_path: Path) -> None:
    _write(tmp_path, [("the sun", "1"), ("a cave", "0")] * 10)
    words = ["sun", "lamp", "noon", "cave", "dusk", "table", "river"]
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{w}\t{n % 2}\n" for n, w in enumerate(words)))
    task = _load(tmp_path, validation=str(tmp_path / "dev.tsv"), validation_longest=4)
    assert _texts(task.validation, tmp_path) == ["lamp", "noon", "table", "river"]


def test_train_loses_what_overlaps_with_the_validation_that_is_kept(tmp_path: Path) -> None:
    train = ["the sun", "a cave under the river", "under the", "walks", "green table", "Green river", "a lamp of"]
    _write(tmp_path, [(f" {text} ", str(number % 2)) for number, text in enumerate(train)])
    dev = [("a cave under the river walks", "0"), ("the sun", "1"), ("lamp", "1")]
    (tmp_path / "dev.tsv").write_text("sentence\tlabel\n" + "".join(f"{t}\t{n}\n" for t, n in dev))
    files = {"validation": str(tmp_path / "dev.tsv"), "test": str(tmp_path / "test.tsv")}
    all_kept = _load(tmp_path, exclude_overlap=True, **files)
    assert _texts(all_kept.train, tmp_path) == ["green table", "green river"]
    longest = _load(tmp_path, exclude_overlap=True, validation_longest=2, **files)
    assert _texts(longest.train, tmp_path) == ["green table", "green river", "a lamp of"]
    assert len(_load(tmp_path, **files).train) == 7


def test_a_pair_overlaps_if_one_of_its_texts_does(tmp_path: Path) -> None:
    rows = [("the sun", "a lamp", "1"), ("dusk", "cave", "0"), ("green", "lamp", "1"), ("river", "noon", "0")]
    _write(tmp_path, rows, ("first", "second", "label"))
    (tmp_path / "dev.tsv").write_text("first\tsecond\tlabel\nsun\ttable\t1\nlamp\tnoon walks\t0\n")
    files = {"validation": str(tmp_path / "dev.tsv"), "test": str(tmp_path / "dev.tsv")}
    task = _load(tmp_path, text_columns=["first", "second"], exclude_overlap=True, **files)
    assert _texts(task.train, tmp_path) == ["dusk cave", "green lamp"]


# What is refused


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"tokenizer": None}, ["texts need a tokeniser", "data.tokenizer is not set"]),
        ({"text_columns": ["sentense"]}, ["data.text_columns", "train has sentence, label", "did you mean sentence?"]),
        ({"label_column": "lable"}, ["data.label_column", "did you mean label?"]),
        ({"text_columns": []}, ["one column, or two for pairs", "got []", "correct"]),
        ({"text_columns": ["a", "b", "c"]}, ["one column, or two for pairs", "['a', 'b', 'c']"]),
        ({"text_columns": ["sentence", "sentence"]}, ["one column, or two", "correct"]),
        ({"text_columns": ["label"]}, ["the label has another", "correct"]),
        ({"validation": "/no/dev.tsv"}, ["a table is a file", "/no/dev.tsv does not exist", "correct"]),
        ({"validation_longest": 99}, ["keeps some of validation", "99 of 9", "lower it"]),
        ({"validation_longest": 1}, ["each class has examples in validation", "has none"]),
        ({"validation_fraction": 0.01}, ["each of 2 classes", "gives 1", "raise the fraction"]),
        ({"image_size": 32}, ["data.image_size goes with", "remove it"]),
        ({"mean": [0.5], "std": [0.5]}, ["data.mean is for images", "gives texts", "remove it"]),
        ({"augment": "crop"}, ["data.augment is for images", "remove it"]),
        ({"arguments": {"a": 1}}, ["data.arguments goes with", "a function", "remove it"]),
    ],
)
def test_options_that_do_not_fit_get_one_line(folder: Path, options: dict[str, Any], parts: list[str]) -> None:
    refusal(lambda: _load(folder, **options), parts)


@pytest.mark.parametrize(
    ("rows", "classification", "parts"),
    [
        ([("sun", "1"), ("cave", "dark")] * 20, True, ["all numbers or all texts", "'1' and 'dark'"]),
        ([("sun", "0.5"), ("cave", "1")] * 20, True, ["are whole", "0.5", "task.loss"]),
        ([("sun", "1"), ("cave", "")] * 20, True, ["every row has a label", "20 of 40 rows of train", "row 2"]),
        ([("sun", "1"), ("", "0")] * 20, True, ["each row has a text", "20 of 40 rows of train", "row 2 with ''"]),
        ([("sun", "1")] * 20, True, ["two classes or more", "only '1'"]),
        ([("sun", "1"), ("cave", "0")], True, ["each class has an example for each split", "'0' has 1 of 3"]),
        ([("sun", "1"), ("cave", "dark")] * 20, False, ["targets are finite numbers", "train has 'dark'"]),
        ([("sun", "1"), ("cave", "nan")] * 20, False, ["targets are finite numbers", "train has 'nan'"]),
        ([("sun", "1"), ("cave", "inf")] * 20, False, ["targets are finite numbers", "train has 'inf'"]),
    ],
)
def test_tables_that_are_no_task_get_one_line(
    tmp_path: Path, rows: list[tuple[str, ...]], classification: bool, parts: list[str]
) -> None:
    _write(tmp_path, rows)
    refusal(lambda: _load(tmp_path, classification=classification), parts)


def test_a_train_of_which_nothing_is_left_gets_one_line(tmp_path: Path) -> None:
    _write(tmp_path, [("the sun", "1"), ("the cave", "0")] * 10)
    parts = ["each split has examples", "train has none"]
    refusal(lambda: _load(tmp_path, exclude_overlap=True), parts)


# SST-2


@pytest.mark.shared_data
@pytest.mark.skipif(SHARED is None, reason="AUTOCOMPRESS_DATA is not set")
def test_sst2_keeps_the_longest_texts_and_no_line_that_overlaps_with_them(folder: Path) -> None:
    sst2 = Path(SHARED or "") / "sst2"
    tables = {split: read_table(sst2 / f"{split}.tsv") for split in ("train", "dev", "test")}
    section = DataSection(source=f"text:{sst2 / 'train.tsv'}", validation_longest=1500, exclude_overlap=True)
    texts = {
        ours: Texts((tables[name]["sentence"].tolist(),), torch.arange(len(tables[name])))
        for ours, name in (("train", "train"), ("validation", "dev"), ("test", "test"))
    }
    kept = selected(texts, section)
    lengths = sorted(map(len, texts["validation"].columns[0]), reverse=True)
    assert sorted(map(len, kept["validation"].columns[0]), reverse=True) == lengths[:1500]
    assert len(kept["test"].labels) == 872
    validation = [text.strip() for text in kept["validation"].columns[0]]
    rows = set(kept["train"].labels.tolist())
    for row in range(0, len(tables["train"]), 20):
        text = texts["train"].columns[0][row].strip()
        assert (row in rows) == (not any(text in other or other in text for other in validation))
    task = _load(
        sst2,
        tokenizer=str(folder / "model"),
        validation=str(sst2 / "dev.tsv"),
        test=str(sst2 / "test.tsv"),
        validation_longest=1500,
        exclude_overlap=True,
    )
    assert [len(split) for split in (task.train, task.validation, task.test)] == [len(rows), 1500, 872]
