"""Folders by path and inside installed packages."""

import sys
from pathlib import Path

import pytest

from autocompress.errors import ConfigError
from autocompress.resource_folder import resource_folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package whose code must not run."""
    folder = tmp_path / "package_with_a_folder"
    (folder / "deep" / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert resource_folder(str(tmp_path)) == tmp_path


def test_a_folder_inside_a_package_that_is_not_imported(package: Path) -> None:
    assert resource_folder("package:package_with_a_folder/deep/model") == package / "deep" / "model"
    assert resource_folder("package:package_with_a_folder") == package
    assert "package_with_a_folder" not in sys.modules


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("/no/folder", ["a folder must exist", "/no/folder does not", "correct the path"]),
        ("package:package_with_a_folder/shallow", ["must exist", "package_with_a_folder/shallow", "correct the path"]),
        (
            "package:no_such_package/model",
            ["needs the package no_such_package", "none of that name is installed", "with pip"],
        ),
        ("package:package_with_a_folder/../other", ["inside an installed package", "got", "give the name"]),
        ("package:/etc", ["inside an installed package", "got 'package:/etc'"]),
        ("package:a.b/model", ["inside an installed package", "got 'package:a.b/model'"]),
        ("package:zipfile/model", ["the package zipfile", "none of that name"]),
    ],
)
def test_other_folders_get_one_line(package: Path, text: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resource_folder(text)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
