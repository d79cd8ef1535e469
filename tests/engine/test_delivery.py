"""An export stands alone and is whole or absent; what verify says of it is true."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin, State
from autocompress.config import StudyConfig
from autocompress.data.sources import load_data
from autocompress.data.task import TaskData
from autocompress.deploy.card import CARD, MODEL, REFERENCE, read_card, sha256, verify_folder
from autocompress.engine import delivery
from autocompress.engine.baseline import REFERENCE_EXAMPLES, keep_task
from autocompress.engine.delivery import (
    allowed_examples,
    export_candidate,
    latency_line,
    verify_accuracy,
)
from autocompress.engine.run_folder import RunFolder, read_task, record, write_json, write_study
from autocompress.errors import AutocompressError, RunError, VerificationFailed
from autocompress.plan import Plan, Precision, QuantizationSpec

COMPLETE, FAILED, OVER_LIMIT, WITHOUT_FILE, UNKNOWN = 0, 1, 2, 3, 99
FACTS: dict[str, Any] = {
    "machine": "x86_64", "system": "Linux", "cpu": "a cpu", "cpu_features": ["avx2"], "cores": 2,
    "python": "3.11.9", "versions": {"onnxruntime": "1.27.0"}, "training_threads": 2, "baseline_s": 1.0,
    "target": {"runtime": "onnxruntime", "threads": 1, "batch_size": 1, "training_threads": None},
}  # fmt: skip


@pytest.fixture(scope="module")
def config() -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "study": {"name": "small-digits", "trials": 4},
            "model": {"source": "package.module:factory"},
            "data": {"source": "sklearn:digits", "image_size": 8},
        }
    )


@pytest.fixture(scope="module")
def digits(config: StudyConfig) -> TaskData:
    return load_data(config.data, config.study.seed)


@pytest.fixture(scope="module")
def model(digits: TaskData) -> onnx.ModelProto:
    """Digits classified by least squares."""
    (images,) = digits.model_inputs(digits.train, torch.arange(len(digits.train)))
    columns = torch.cat([images.flatten(1), torch.ones(len(images), 1)], dim=1)
    targets = torch.nn.functional.one_hot(digits.train.labels, 10).float()
    solution = torch.linalg.lstsq(columns, targets, driver="gelsd").solution.numpy()
    tensors = {"weight": solution[:-1], "bias": solution[-1]}
    nodes = [
        helper.make_node("Flatten", ["image"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logits"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])
    initializers = [numpy_helper.from_array(array, name) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "g", [image], [logits], initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


def candidate(trial: int, content: bytes, correct: int, total: int) -> Candidate:
    latency = Latency(latency_ms=0.125, p90_ms=0.2, baseline_ms=0.5, ratio=0.25, ratio_low=0.2, ratio_high=0.3)
    return Candidate(
        trial=trial,
        origin=Origin.SAMPLED,
        state=State.COMPLETE,
        plan=Plan(quantization=QuantizationSpec(precisions={"head": Precision.FLOAT32}), seed=5),
        measurement=Measurement(
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            compressed_bytes=len(content),
            size_ratio=0.5,
            latency=latency,
            validation=Accuracy(correct=correct, total=total, lost=2, gained=1),
        ),
    )


def hits_of(model: onnx.ModelProto, digits: TaskData) -> int:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (images,) = digits.model_inputs(digits.validation, torch.arange(len(digits.validation)))
    (logits,) = session.run(None, {"image": images.numpy()})
    return int((logits.argmax(axis=1) == digits.validation.labels.numpy()).sum())


@pytest.fixture
def run(tmp_path: Path, config: StudyConfig, digits: TaskData, model: onnx.ModelProto) -> RunFolder:
    """A run as a search leaves it, as far as an export reads it."""
    run = RunFolder(tmp_path / "run")
    run.baseline.mkdir(parents=True)
    write_study(run, config)
    write_json(run.baseline / "facts.json", FACTS)
    keep_task(run, digits)
    content = model.SerializeToString()
    complete = candidate(COMPLETE, content, hits_of(model, digits), len(digits.validation))
    record(run, complete)
    run.artifact(COMPLETE).write_bytes(content)
    ends = {FAILED: (State.FAILED, "parity: 0.5"), OVER_LIMIT: (State.OVER_LIMIT, "limit: bytes")}
    for trial, (state, reason) in ends.items():
        gone = {"trial": trial, "state": state, "reason": reason, "measurement": None}
        record(run, complete.model_copy(update=gone))
    record(run, complete.model_copy(update={"trial": WITHOUT_FILE}))
    return run


@pytest.fixture
def exported(run: RunFolder, tmp_path: Path) -> Path:
    return export_candidate(run, COMPLETE, tmp_path / "exported")


def change_accuracy(folder: Path, correct: int, total: int | None = None) -> None:
    content = json.loads((folder / CARD).read_text())
    content["measurement"]["validation"]["correct"] = correct
    if total is not None:
        content["measurement"]["validation"]["total"] = total
    (folder / CARD).write_text(json.dumps(content))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# --- export -------------------------------------------------------------------------------------------------


def test_an_export_is_the_trials_file_with_its_card(run: RunFolder, exported: Path) -> None:
    card = read_card(exported)
    stored = json.loads((run.trial(COMPLETE) / "candidate.json").read_text())
    assert {path.name for path in exported.iterdir()} == {MODEL, CARD, REFERENCE}
    assert (exported / MODEL).read_bytes() == run.artifact(COMPLETE).read_bytes()
    assert (card.study, card.trial, card.seed) == ("small-digits", COMPLETE, 5)
    assert card.measurement.model_dump(mode="json") == stored["measurement"]
    assert card.plan.model_dump(mode="json") == stored["plan"]
    assert card.class_names == tuple("0123456789")
    assert card.preprocessing["divide_by"] == 255
    assert (card.latency.threads, card.machine.cpu) == (1, "a cpu")


def test_an_export_stands_alone(run: RunFolder, exported: Path, tmp_path: Path) -> None:
    moved = exported.rename(tmp_path / "elsewhere")
    shutil.rmtree(run.root)
    assert all(check.passed for check in verify_folder(moved))
    session = ort.InferenceSession(moved / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(moved / "reference.npz") as stored:
        (found,) = session.run(None, {"image": stored["input.image"]})
        np.testing.assert_allclose(found, stored["output.logits"], rtol=0, atol=1e-5)


def test_references_are_validation_examples_of_several_classes(
    run: RunFolder, exported: Path, digits: TaskData
) -> None:
    task, (kept,) = read_task(run)
    rows = torch.linspace(0, len(digits.validation) - 1, REFERENCE_EXAMPLES).long()
    np.testing.assert_array_equal(kept, digits.model_inputs(digits.validation, rows)[0].numpy())
    assert len(set(digits.validation.labels[rows].tolist())) > 3
    assert task["input_names"] == ["image"]
    with np.load(exported / REFERENCE) as stored:
        np.testing.assert_array_equal(stored["input.image"], kept)


def test_an_export_goes_to_a_new_or_an_empty_folder(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "pointed", target_is_directory=True)
    for out in (tmp_path / "empty", tmp_path / "some" / "where" / "new", tmp_path / "link"):
        assert export_candidate(run, COMPLETE, out) == out
        assert all(check.passed for check in verify_folder(out))
    names = {"run", "empty", "some", "link", "pointed"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_two_exports_of_a_trial_are_the_same(run: RunFolder, tmp_path: Path) -> None:
    first, second = (export_candidate(run, COMPLETE, tmp_path / name) for name in "ab")
    for name in (MODEL, CARD, REFERENCE):
        assert (first / name).read_bytes() == (second / name).read_bytes()


@pytest.mark.parametrize(
    ("trial", "said"),
    [
        (UNKNOWN, "has no trial 99"),
        (-1, "has no trial -1"),
        (FAILED, r"trial 1 is failed \(parity: 0.5\)"),
        (OVER_LIMIT, r"trial 2 is over_limit \(limit: bytes\)"),
        (WITHOUT_FILE, "is missing"),
    ],
)
def test_a_trial_without_a_file_is_the_users_mistake(run: RunFolder, tmp_path: Path, trial: int, said: str) -> None:
    with pytest.raises(RunError, match=said) as failure:
        export_candidate(run, trial, tmp_path / "deep" / "out")
    assert "autocompress front" in str(failure.value) and "\n" not in str(failure.value)
    assert not (tmp_path / "deep").exists()


def test_what_is_in_the_way_stays(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("kept")
    (tmp_path / "file").write_text("kept")
    for out in (tmp_path / "full", tmp_path / "file", tmp_path / "file" / "below", run.root):
        with pytest.raises(RunError, match="choose another with -o"):
            export_candidate(run, COMPLETE, out)
    assert (tmp_path / "full" / "mine").read_text() == (tmp_path / "file").read_text() == "kept"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "full", "file"}


def spoil_size(run: RunFolder) -> None:
    with run.artifact(COMPLETE).open("ab") as file:
        file.write(b"\x00")


def spoil_content(run: RunFolder) -> None:
    run.artifact(COMPLETE).write_bytes(bytes(run.artifact(COMPLETE).stat().st_size))


def spoil_facts(run: RunFolder) -> None:
    write_json(run.baseline / "facts.json", {"cpu": "a cpu"})


def spoil_references(run: RunFolder) -> None:
    np.savez(run.baseline / "reference_inputs.npz", np.zeros((8, 3, 8, 8), np.float32))


@pytest.mark.parametrize(
    ("spoil", "error", "said"),
    [
        (spoil_size, VerificationFailed, "must be as measured"),
        (spoil_content, VerificationFailed, "must be as measured"),
        (spoil_references, VerificationFailed, "must run"),
        (spoil_facts, RunError, "facts must be as they were written"),
        (lambda run: (run.baseline / "facts.json").unlink(), RunError, r"facts.json is missing"),
        (lambda run: (run.baseline / "task.json").unlink(), RunError, "task.json"),
        (lambda run: (run.baseline / "task.json").write_text("{"), RunError, "task.json"),
        (lambda run: (run.baseline / "reference_inputs.npz").unlink(), RunError, "reference_inputs"),
        (lambda run: (run.baseline / "reference_inputs.npz").write_text("?"), RunError, "reference_inputs"),
    ],
)
def test_an_export_of_a_damaged_run_leaves_nothing(
    run: RunFolder, tmp_path: Path, spoil: Any, error: type[AutocompressError], said: str
) -> None:
    spoil(run)
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(error, match=said) as failure:
            export_candidate(run, COMPLETE, out)
        assert "\n" not in str(failure.value)
    assert {path.name for path in tmp_path.iterdir()} == {"run", "empty"}
    assert not any((tmp_path / "empty").iterdir())


@pytest.mark.parametrize("position", [0, 200, -1])
def test_a_copy_that_is_not_the_file_is_noticed(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, position: int
) -> None:
    def copy_badly(source: Path, target: Path) -> None:
        target.write_bytes(source.read_bytes())
        flip(target, position)

    monkeypatch.setattr(delivery.shutil, "copyfile", copy_badly)
    with pytest.raises(VerificationFailed, match="must be as measured"):
        export_candidate(run, COMPLETE, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


def test_the_copy_must_reproduce_the_outputs_of_the_runs_file(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The card is written for a copy that has changed since it was compared: its answers tell."""

    def swap(run: RunFolder, candidate: Candidate, folder: Path) -> None:
        changed = onnx.load(run.artifact(candidate.trial))
        weight = numpy_helper.to_array(changed.graph.initializer[0])
        changed.graph.initializer[0].CopyFrom(numpy_helper.from_array(1.01 * weight, "weight"))
        onnx.save(changed, folder / MODEL)

    monkeypatch.setattr(delivery, "_copy_file", swap)
    with pytest.raises(VerificationFailed, match="reference outputs: outputs must be within"):
        export_candidate(run, COMPLETE, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(28, "No space left on device"), RunError),
        (MemoryError(), MemoryError),
    ],
)
def test_an_interrupted_export_leaves_nothing(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException, seen: type
) -> None:
    def interrupted(folder: Path, *arguments: object) -> None:
        (folder / CARD).write_text("{")
        raise raised

    monkeypatch.setattr(delivery, "write_card", interrupted)
    with pytest.raises(seen):
        export_candidate(run, COMPLETE, tmp_path / "new" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"run"}


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_cannot_be_written_is_the_users_mistake(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(RunError, match="choose another with -o"):
        export_candidate(run, COMPLETE, tmp_path / "locked" / "out")


# --- verify -------------------------------------------------------------------------------------------------


def test_accuracy_is_that_of_the_card(exported: Path, config: StudyConfig, digits: TaskData) -> None:
    check = verify_accuracy(exported, config)
    assert check.passed
    assert f"of {len(digits.validation)} validation examples" in check.detail


@pytest.mark.parametrize(("off", "passes"), [(-2, False), (-1, True), (1, True), (2, False)])
def test_accuracy_may_be_off_by_one_of_few_examples(
    exported: Path, config: StudyConfig, off: int, passes: bool
) -> None:
    correct = read_card(exported).measurement.validation.correct  # type: ignore[union-attr]
    change_accuracy(exported, correct + off)
    assert verify_accuracy(exported, config).passed is passes


@pytest.mark.parametrize(
    ("total", "allowed"), [(1, 1), (180, 1), (999, 1), (1000, 2), (1499, 2), (1500, 3), (5000, 10)]
)
def test_allowed_is_a_fifth_of_a_point_or_one_example(total: int, allowed: int) -> None:
    assert allowed_examples(total) == allowed


def test_accuracy_reads_validation_only(
    exported: Path, config: StudyConfig, digits: TaskData, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind: Any = replace(digits, test=None, train=None, calibration=None)  # type: ignore[arg-type]
    monkeypatch.setattr(delivery, "load_task", lambda config: blind)
    assert verify_accuracy(exported, config).passed


def test_another_study_fails(exported: Path, config: StudyConfig, digits: TaskData) -> None:
    smaller = config.data.model_copy(update={"validation_fraction": 0.2})
    check = verify_accuracy(exported, config.model_copy(update={"data": smaller}))
    assert not check.passed and "the study must be the card's, small-digits" in check.detail


def test_a_study_of_other_inputs_fails_in_one_line(exported: Path, config: StudyConfig) -> None:
    larger = config.data.model_copy(update={"image_size": 16})
    check = verify_accuracy(exported, config.model_copy(update={"data": larger}))
    assert not check.passed and "does not run" in check.detail and "\n" not in check.detail


def test_latency_stands_beside_the_cards(exported: Path) -> None:
    line = latency_line(exported, seconds=0.05)
    assert "ms" in line.partition(" here")[0]
    assert line.endswith("1 thread(s), batch 1; the card has 0.125 ms (4.00x) on a cpu")


@pytest.mark.parametrize("missing", [MODEL, CARD, REFERENCE])
def test_latency_never_fails(exported: Path, missing: str) -> None:
    (exported / missing).unlink()
    line = latency_line(exported, seconds=0.05)
    assert line.startswith("latency: could not be measured here: ") and "\n" not in line


def test_the_digest_is_that_of_any_tool(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")
