"""Tables: what is read as it stands, and files that are none."""

from pathlib import Path

import pandas as pd
import pytest
from refusals import refusal

from autocompress.data.tables import check_columns, read_table


def _write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_line_of_a_tsv_file_is_an_example_whatever_its_quotation_marks(tmp_path: Path) -> None:
    lines = ['"a good film', 'it \'s "so" so', 'ends in "', "", "NA", "null", "3"]
    path = _write(tmp_path, "a.tsv", "sentence\tlabel\n" + "".join(f"{line}\t1\n" for line in lines))
    table = read_table(path)
    assert table["sentence"].tolist() == lines
    assert table["label"].tolist() == ["1"] * 7


def test_a_csv_file_is_quoted(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.csv", 'label,sentence\npos,"one, and\nanother ""line"""\nneg,NA\n')
    assert read_table(path).to_dict("list") == {"label": ["pos", "neg"], "sentence": ['one, and\nanother "line"', "NA"]}


def test_a_byte_order_mark_and_line_ends_of_other_systems_are_no_text(tmp_path: Path) -> None:
    path = _write(tmp_path, "a.tsv", "\ufeffsentence\tlabel\r\ngood\t1\r\n".encode())
    assert read_table(path).to_dict("list") == {"sentence": ["good"], "label": ["1"]}


def test_a_parquet_file_keeps_its_types(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    table = pd.DataFrame({"text": ["a", "b", "c"], "label": [2, 0, 1]})
    table[table["label"] < 2].to_parquet(tmp_path / "a.parquet")
    read = read_table(tmp_path / "a.parquet")
    assert read.to_dict("list") == {"text": ["b", "c"], "label": [0, 1]}
    assert list(read.index) == [0, 1]


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("a.tsv", "", ["must be readable", "a.tsv", "save it again"]),
        ("a.tsv", "sentence\tlabel\n", ["has rows", "has none", "add some"]),
        ("a.tsv", "sentence\tlabel\ngood\tfilm\t1\n", ["as many fields", "rows with more", "correct the header"]),
        ("a.tsv", "sentence\tlabel\ngood\t1\ngood\tfilm\t1\n", ["must be readable", "line 3"]),
        ("a.csv", 'sentence,label\n"good,1\n', ["must be readable", "a.csv"]),
        ("a.csv", b"sentence,label\n\xff\xfe,1\n", ["must be readable", "a.csv", "utf-8"]),
        ("a.parquet", b"PAR1 no parquet", ["must be readable", "a.parquet"]),
        ("a.txt", "sentence\tlabel\n", ["ends in .tsv, .csv, .parquet", "got a.txt", "save it"]),
    ],
)
def test_a_file_that_is_no_table_gets_one_line(
    tmp_path: Path, name: str, content: str | bytes, parts: list[str]
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    path = _write(tmp_path, name, content)
    refusal(lambda: read_table(path), parts)


def test_a_missing_file_gets_one_line() -> None:
    refusal(lambda: read_table(Path("/no/table.tsv")), ["/no/table.tsv does not exist", "correct the path"])


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = _write(tmp_path, "a.parquet", b"PAR1")
    refusal(lambda: read_table(path), ["needs the library pyarrow", 'pip install "autocompress[text]"'])


@pytest.mark.parametrize(
    ("columns", "label", "parts"),
    [
        (
            ("sentense",),
            "label",
            ["data.text_columns", "has sentence, other, label and no 'sentense'", "mean sentence?"],
        ),
        (("sentence",), "class", ["data.label_column", "and no 'class'", "check the name"]),
        (("sentence", "other"), "label", ["each row has a text", "2 of 3 rows of test", "'other'", "row 2 with ' '"]),
    ],
)
def test_columns_that_are_not_there_or_not_filled_get_one_line(
    columns: tuple[str, ...], label: str, parts: list[str]
) -> None:
    table = pd.DataFrame({"sentence": ["a", "b", "c"], "other": ["a", " ", ""], "label": ["0", "1", "1"]})
    refusal(lambda: check_columns(table, columns, label, "test"), parts)


@pytest.mark.parametrize("values", [[1, 2], ["a", None], ["a", 2]])
def test_a_column_of_something_else_than_texts_gets_one_line(values: list[object]) -> None:
    table = pd.DataFrame({"sentence": pd.Series(values, dtype=object), "label": [0, 1]})
    refusal(lambda: check_columns(table, ("sentence",), "label", "train"), ["each row has a text", "of train"])
