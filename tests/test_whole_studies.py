"""Studies of texts and of numbers from the command line, by the plain engine, from the first word to a verified export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from token_task import write_token_task

pytestmark = pytest.mark.slow

TEXTS = """
[study]
name = "words"
engine = "plain"
trials = 12

[model]
source = "hf:model"

[data]
source = "text:train.tsv"
validation = "dev.tsv"
test = "test.tsv"
max_length = 24
calibration_examples = 64

[baseline]
steps = 200
learning_rate = 0.003

[training]
steps = 10
batch_size = 32
learning_rate = 0.001
optimizer = "adamw"

[space]
precision = ["w8a8_dynamic", "w4a8_dynamic", "w4"]
hidden_weight = [0.0, 1.0]
relation_weight = [0.0, 1.0]

[target]
sequence_length = 12
"""

NUMBERS = """
[study]
name = "numbers"
engine = "plain"
trials = 4

[model]
source = "task.py:network"

[data]
source = "task.py:points"
arguments = { rows = 400 }
calibration_examples = 64

[task]
loss = "task.py:squared_error"
metric = "task.py:explained"

[baseline]
steps = 300
learning_rate = 0.01

[training]
steps = 20
batch_size = 32
learning_rate = 0.002
optimizer = "adamw"

[space]
precision = ["w8a8", "w4a8_dynamic", "w4"]

[limits]
max_accuracy_drop = 20
"""

TASK = '''
import torch
from torch import nn


def points(rows):
    """Two numbers for six; the first split is cut by autocompress."""
    x = torch.randn(rows, 6, generator=torch.Generator().manual_seed(0))
    y = torch.stack([x[:, 0] * 2 - x[:, 1], torch.tanh(x[:, 2] + x[:, 3])], dim=1)
    return {"train": (x, y)}


def network():
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def squared_error(outputs, targets):
    return ((outputs - targets) ** 2).mean()


def explained(outputs, targets):
    """Share of the variance that is explained."""
    return 1 - float(((outputs - targets) ** 2).mean() / targets.var())
'''


def autocompress(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "autocompress", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def members(folder: Path, run: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(autocompress(folder, "front", run, "--format", "json"))
    return found


# Texts


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("texts")
    write_token_task(folder)
    (folder / "study.toml").write_text(TEXTS)
    said = autocompress(folder, "search", "study.toml", "--trials", "4")
    assert "training the base for 200 steps" in said
    assert "report: runs/words/report.html" in said
    return folder


def test_a_text_model_is_searched_by_its_heads_units_blocks_and_tables(texts: Path) -> None:
    analysis = json.loads((texts / "runs/words/baseline/analysis.json").read_text())
    inner = [group["inner"] for group in analysis["groups"] if group["inner"]]
    assert sorted(width["kind"] for width in inner) == ["heads", "heads", "mlp", "mlp", "mlp"]  # the pooler's is one
    assert [len(run["blocks"]) for run in analysis["runs"]] == [2]
    assert {layer["kind"] for layer in analysis["layers"]} == {"embedding", "linear"}
    baseline = json.loads((texts / "runs/words/baseline/measurement.json").read_text())
    assert baseline["validation"]["correct"] / baseline["validation"]["total"] > 0.9
    found = members(texts, "runs/words")
    assert found
    for member in found:
        assert Path(texts / member["artifact"]).stat().st_size == member["size_bytes"]
        assert member["val_accuracy"] > 0.9 and member["test_accuracy"] > 0.8
    plans = [json.loads((texts / f"runs/words/trials/{n:04d}/plan.json").read_text()) for n in range(4)]
    tables = {plan["quantization"]["precisions"]["model.bert.embeddings.word_embeddings"] for plan in plans}
    assert tables == {"float32", "w8", "w4"}
    assert min(member["size_ratio"] for member in found) < 0.25


def test_a_member_answers_sentences_of_any_length_after_its_export(texts: Path, tmp_path: Path) -> None:
    out = tmp_path / "ship"
    autocompress(texts, "export", "runs/words", "--best", "min size_bytes", "-o", str(out))
    said = autocompress(texts, "verify", str(out), "--study", "study.toml")
    assert "FAILED" not in said and "accuracy" in said
    card = json.loads((out / "card.json").read_text())
    assert card["latency"]["sequence_length"] == 12
    assert card["class_names"] == ["0", "1"]
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    assert [node.name for node in session.get_inputs()] == [entry["name"] for entry in card["inputs"]]
    assert all(
        len(node.shape) == 2 and not any(isinstance(d, int) for d in node.shape) for node in session.get_inputs()
    )

    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(texts / "model" / "tokenizer.json"))
    for sentence, light in (("sun lamp", 1), ("the night walks in a cave under the table", 0), ("noon spark dusk", 1)):
        encoded = tokenizer.encode(sentence)
        known = {"input_ids": encoded.ids, "token_type_ids": encoded.type_ids, "attention_mask": encoded.attention_mask}
        feed = {node.name: np.array([known[node.name]], np.int64) for node in session.get_inputs()}
        assert int(session.run(None, feed)[0].argmax()) == light


def test_a_second_run_takes_the_trained_base(texts: Path) -> None:
    (texts / "other.toml").write_text(TEXTS.replace('"words"', '"fewer"').replace('"w4a8_dynamic", ', ""))
    said = autocompress(texts, "search", "other.toml", "--trials", "1")
    assert "taking the trained base from runs/.bases/" in said
    assert "training the base" not in said
    first, second = ((texts / f"runs/{name}/baseline/weights.safetensors").read_bytes() for name in ("words", "fewer"))
    assert first == second


def test_a_search_goes_on_and_its_report_is_written_again(texts: Path) -> None:
    before = [path.read_bytes() for path in sorted((texts / "runs/words/trials").glob("*/model.onnx"))]
    said = autocompress(texts, "search", "study.toml", "--trials", "5")
    assert "training the base" not in said and "5/5 trials" in said
    after = [path.read_bytes() for path in sorted((texts / "runs/words/trials").glob("*/model.onnx"))]
    assert after[:4] == before and len(after) == 5
    autocompress(texts, "report", "runs/words", "-o", "page.html")
    page = (texts / "page.html").read_text()
    assert "w4a8_dynamic" in page and "heads" in page


def test_check_says_what_may_change_in_a_text_model(texts: Path) -> None:
    (texts / "limits.toml").write_text(TEXTS + "\n[limits]\nmax_size_ratio = 0.5\nmax_size_bytes = 100\n")
    said = autocompress(texts, "check", "limits.toml")
    for fragment in ("2 removable blocks", "2 heads", "3 mlp", "embedding", "CANNOT be met", "can be met", "2 classes"):
        assert fragment in said
    assert not (texts / "runs" / "limits").exists()


# Numbers


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("numbers")
    (folder / "task.py").write_text(TASK)
    (folder / "study.toml").write_text(NUMBERS)
    autocompress(folder, "search", "study.toml")
    return folder


def test_numbers_are_searched_by_their_own_metric(numbers: Path) -> None:
    baseline = json.loads((numbers / "runs/numbers/baseline/measurement.json").read_text())
    assert baseline["validation"]["value"] > 0.9
    assert baseline["validation"]["drop_low_points"] == baseline["validation"]["drop_high_points"] == 0
    found = members(numbers, "runs/numbers")
    assert found
    for member in found:
        assert 0.7 < member["val_accuracy"] <= 1 and 0.7 < member["test_accuracy"] <= 1
        drop = 100 * (baseline["validation"]["value"] - member["val_accuracy"])
        assert member["val_drop_points"] == pytest.approx(drop, abs=1e-6)
        assert member["val_drop_low"] - 1e-9 <= drop <= member["val_drop_high"] + 1e-9
    assert min(member["size_ratio"] for member in found) < 0.5
    records = [json.loads(path.read_text()) for path in (numbers / "runs/numbers/trials").glob("*/candidate.json")]
    assert [record["state"] for record in records] == ["complete"] * 4
    assert all(record["measurement"]["parity"]["top1_agreement"] is None for record in records)


def test_the_report_of_numbers_is_built(numbers: Path) -> None:
    page = (numbers / "runs/numbers/report.html").read_text()
    assert page.startswith("<!") and "numbers" in page and "nan" not in page.lower().split("plotly")[0]
    assert "%" in page


def test_a_member_of_numbers_ships_and_verifies(numbers: Path, tmp_path: Path) -> None:
    out = tmp_path / "ship"
    autocompress(
        numbers, "export", "runs/numbers", "--best", "min size_bytes where val_drop_points < 20", "-o", str(out)
    )
    assert "FAILED" not in autocompress(numbers, "verify", str(out), "--study", "study.toml")
    session = ort.InferenceSession(out / "model.onnx", providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    y = np.stack([x[:, 0] * 2 - x[:, 1], np.tanh(x[:, 2] + x[:, 3])], axis=1)
    answers = session.run(None, {session.get_inputs()[0].name: x})[0]
    assert 1 - np.square(answers - y).mean() / y.var() > 0.6
