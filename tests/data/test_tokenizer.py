"""Token ids, masks and padding against the tokeniser itself."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from refusals import refusal
from token_task import POSITIONS, write_model_folder

pytest.importorskip("tokenizers")
pytest.importorskip("transformers")

from autocompress.data.tokenizer import load_tokenizer

TEXTS = ["the sun", "a night in the cave under the river", "lamp"]
OTHERS = ["dusk", "the sun", "a table"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "words"
    write_model_folder(path)
    return path


@pytest.fixture
def bare(folder: Path, tmp_path: Path) -> Path:
    """A folder with nothing but ``tokenizer.json``."""
    path = tmp_path / "bare"
    path.mkdir()
    shutil.copy(folder / "tokenizer.json", path)
    return path


def _ids(folder: Path) -> dict[str, int]:
    vocabulary: dict[str, int] = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    return vocabulary


def test_a_text_becomes_its_words_between_the_special_tokens(folder: Path) -> None:
    ids, mask = load_tokenizer(str(folder), 128).encode([TEXTS])
    words = _ids(folder)
    expected = [[words["[CLS]"], *(words[word] for word in text.split()), words["[SEP]"]] for text in TEXTS]
    assert ids.shape == mask.shape == (3, 10)
    for row, row_mask, tokens in zip(ids.tolist(), mask.tolist(), expected, strict=True):
        assert row == tokens + [0] * (10 - len(tokens))
        assert row_mask == [1] * len(tokens) + [0] * (10 - len(tokens))


def test_a_text_is_cut_to_the_length_asked_or_that_the_model_takes(folder: Path) -> None:
    assert load_tokenizer(str(folder), 5).encode([TEXTS])[0].shape == (3, 5)
    longest = load_tokenizer(str(folder), 512)
    assert longest.max_length == POSITIONS
    assert longest.encode([["sun " * 100]])[0].shape == (1, POSITIONS)


def test_pairs_have_types_where_the_model_takes_them(folder: Path, bare: Path) -> None:
    tokenizer = load_tokenizer(str(folder), 128)
    assert tokenizer.input_names(pairs=True) == ("input_ids", "attention_mask", "token_type_ids")
    assert tokenizer.input_names(pairs=False) == ("input_ids", "attention_mask")
    _, mask, types = tokenizer.encode([TEXTS, OTHERS])
    assert types[0].tolist() == [0] * 4 + [1] * 2 + [0] * (types.shape[1] - 6)
    assert mask[0].sum() == 6
    assert load_tokenizer(str(bare), 128).input_names(pairs=True) == ("input_ids", "attention_mask")


def test_a_lone_tokenizer_json_is_enough(folder: Path, bare: Path) -> None:
    whole, lone = load_tokenizer(str(folder), 12), load_tokenizer(str(bare), 12)
    assert all(torch.equal(a, b) for a, b in zip(whole.encode([TEXTS]), lone.encode([TEXTS]), strict=True))
    assert lone.max_length == 12


def test_a_tokeniser_is_known_by_its_folder_and_digest_and_by_no_path(folder: Path) -> None:
    tokenizer = load_tokenizer(f"{folder}/", 128)
    assert tokenizer.name == "words"
    assert tokenizer.sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()


def test_a_tokeniser_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path) -> None:
    package = tmp_path / "package_with_a_model"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    shutil.copytree(folder, package / "deep" / "model")
    monkeypatch.syspath_prepend(tmp_path)
    tokenizer = load_tokenizer("package:package_with_a_model/deep/model", 128)
    assert tokenizer.name == "package:package_with_a_model/deep/model"
    assert tokenizer.encode([TEXTS])[0].shape == (3, 10)


def test_the_padding_id_is_the_tokenisers_or_0(folder: Path, tmp_path: Path) -> None:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for pad, expected in (("[SEP]", _ids(folder)["[SEP]"]), (None, 0)):
        path = tmp_path / str(pad)
        shutil.copytree(folder, path)
        (path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": pad}))
        tokenizer = load_tokenizer(str(path), 128)
        assert tokenizer.pad_id == expected
        assert tokenizer.encode([TEXTS])[0][0, 4:].tolist() == [expected] * 6


def test_at_least_two_tokens_are_stored_and_one_is_seen(folder: Path, tmp_path: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "post_processor": None}))
    ids, mask = load_tokenizer(str(tmp_path), 128).encode([["sun", "\u200b \t"]])
    assert ids.shape == (2, 2)
    assert mask[0].tolist() == [1, 0]
    assert mask[1, 0] == 1


def test_nothing_is_printed_or_logged(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load_tokenizer(str(folder), 5).encode([TEXTS * 3, ["sun " * 600] * 9])
    assert capfd.readouterr() == ("", "")


def test_a_tokeniser_that_is_not_there_gets_one_line(tmp_path: Path) -> None:
    refusal(lambda: load_tokenizer(None, 8), ["texts need a tokeniser", "data.tokenizer is not set", "give the folder"])
    refusal(lambda: load_tokenizer("/no/model", 8), ["data.tokenizer", "/no/model does not", "correct the path"])
    refusal(lambda: load_tokenizer("package:no_such/model", 8), ["the package no_such", "none of that name", "pip"])
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    refusal(lambda: load_tokenizer(str(tmp_path), 8), ["data.tokenizer", str(tmp_path), "save_pretrained"])
    (tmp_path / "tokenizer.json").write_text("{}")
    refusal(lambda: load_tokenizer(str(tmp_path), 8), ["data.tokenizer", str(tmp_path), "save_pretrained"])


def test_without_transformers_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    refusal(lambda: load_tokenizer(str(folder), 8), ["the library transformers", 'pip install "autocompress[text]"'])
