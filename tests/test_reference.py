"""References to functions: what they name, and what they cannot."""

import sys
from pathlib import Path

import pytest

from autocompress.errors import ConfigError, DataError, UserError
from autocompress.reference import load_callable, one_line, suggest


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "functions.py"
    path.write_text("import beside\ndef load(): return beside.VALUE\nclass Kind: pass\nnumber = 3\n")
    (tmp_path / "beside.py").write_text("VALUE = 7\n")
    return path


def test_a_function_of_a_file_may_import_what_lies_beside_it(file: Path) -> None:
    assert load_callable(f"{file}:load", DataError)() == 7


def test_one_file_is_one_module(file: Path) -> None:
    assert load_callable(f"{file}:Kind", DataError) is load_callable(f"{file}:Kind", ConfigError)


def test_files_of_one_name_are_kept_apart(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / "functions.py"
    other.parent.mkdir()
    other.write_text("def load(): return 8\n")
    assert [load_callable(f"{path}:load", DataError)() for path in (file, other)] == [7, 8]


def test_a_function_of_an_installed_module_and_of_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert load_callable("os.path:join", DataError)("a", "b") == "a/b"
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in_the_working_folder.py").write_text("def load(): return 9\n")
    assert load_callable("in_the_working_folder:load", DataError)() == 9


@pytest.mark.parametrize("kind", [DataError, ConfigError])
@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("load", ["the data is named as package.module:name", "got 'load'", "add what is missing"]),
        ("module:", ["is named as", "got 'module:'"]),
        ("no.such.module:load", ["must import", "ModuleNotFoundError: No module named 'no'", "correct the name"]),
        ("no/such.py:load", ["names a file", "no/such.py does not exist", "correct the path"]),
        ("{file}:lod", ["has no 'lod'", "did you mean load?"]),
        ("{file}:zzz", ["has no 'zzz'", "check the name"]),
        ("{file}:number", ["a function or class", "of type int", "name what builds the data"]),
        ("{broken}:load", ["must import", "ZeroDivisionError: division by zero", "correct"]),
    ],
)
def test_a_bad_reference_gets_one_line_of_the_asked_kind(
    file: Path, tmp_path: Path, reference: str, parts: list[str], kind: type[UserError]
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0\n")
    with pytest.raises(kind) as caught:
        load_callable(reference.format(file=file, broken=broken), kind, builds="the data")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)


def test_a_file_that_failed_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "mended.py"
    path.write_text("1 / 0\n")
    with pytest.raises(DataError):
        load_callable(f"{path}:load", DataError)
    path.write_text("def load(): return 1\n")
    assert load_callable(f"{path}:load", DataError)() == 1


def test_messages_are_shortened_to_one_line() -> None:
    assert one_line(ValueError("a\n  b")) == "a b"
    assert one_line(ValueError("x" * 999), limit=10) == "xxxxxxx..."
    assert suggest("lable", ["label", "text"]) == "did you mean label?"
    assert suggest("zzz", ["label"]) == "check the name"
