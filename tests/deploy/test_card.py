"""A card says what the file is; whatever differs from it makes the right check fail."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from autocompress.candidate import Accuracy, Candidate, Latency, Measurement, Origin, State
from autocompress.deploy.card import (
    CARD,
    FLOAT_TOLERANCE,
    MODEL,
    QUANTIZED_TOLERANCE,
    REFERENCE,
    Card,
    Check,
    LatencyConditions,
    Machine,
    Provenance,
    Reference,
    least_onnxruntime,
    make_reference,
    read_card,
    sha256,
    verify_folder,
    write_card,
)
from autocompress.deploy.encoding import LayerWeights, encode_weights, strip
from autocompress.errors import RunError, VerificationFailed
from autocompress.plan import Plan, Precision, QuantizationSpec

CHECKS = [
    "card",
    "checksum of model.onnx",
    "checksum of reference.npz",
    "model loads",
    "inputs and output",
    "reference outputs",
]


def model_of(nodes: list[Any], initializers: list[Any], output: list[Any], opset: int = 21) -> onnx.ModelProto:
    """image [batch, 3, 4, 4] -> logits."""
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 4, 4])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, output)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def classifier(precision: Precision, seed: int = 0) -> onnx.ModelProto:
    """One linear layer of 10 classes, encoded as a candidate's file is."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((10, 48), dtype=np.float32)
    tensors = {
        "head.weight": weight,
        "head.bias": np.linspace(-1, 1, 10, dtype=np.float32),
        "scale": np.float32(0.03),
        "zero": np.uint8(128),
    }
    node, grid = helper.make_node, ["scale", "zero"]
    nodes = [node("Flatten", ["image"], ["flat"])]
    if precision.integer_activations:
        nodes += [
            node("QuantizeLinear", ["flat", *grid], ["q"]),
            node("DequantizeLinear", ["q", *grid], ["x"]),
        ]
    source = "x" if precision.integer_activations else "flat"
    nodes.append(node("Gemm", [source, "head.weight", "head.bias"], ["logits"], transB=1))
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in tensors.items()]
    graph = model_of(nodes, initializers, ["batch", 10])
    return strip(encode_weights(graph, layers_of(weight, precision), {}))


def layers_of(weight: np.ndarray, precision: Precision) -> dict[str, LayerWeights]:
    if precision.weight_bits is None:
        return {}
    limit = 2 ** (precision.weight_bits - 1)
    scales = (np.abs(weight).max(axis=1) / limit).astype(np.float32)
    integers = np.clip(np.rint(weight / scales[:, None]), -limit, limit - 1).astype(np.int8)
    return {"head": LayerWeights(integers, scales, precision.weight_bits, precision.integer_activations)}


def provenance(precision: Precision = Precision.FLOAT32) -> Provenance:
    accuracy = Accuracy(correct=90, total=100, lost=3, gained=1)
    latency = Latency(latency_ms=0.1, p90_ms=0.2, baseline_ms=0.4, ratio=0.25, ratio_low=0.2, ratio_high=0.3)
    measured = Measurement(size_bytes=1, compressed_bytes=1, size_ratio=0.5, latency=latency, validation=accuracy)
    plan = Plan(quantization=QuantizationSpec(precisions={"head": precision}), seed=3)
    return Provenance(
        study="a-study",
        candidate=Candidate(trial=7, origin=Origin.SAMPLED, state=State.COMPLETE, plan=plan, measurement=measured),
        preprocessing={"divide_by": 255, "mean": [0.5]},
        class_names=tuple("abcdefghij"),
        latency=LatencyConditions(runtime="onnxruntime", threads=1, batch_size=1),
        machine=Machine(machine="x86_64", system="Linux", cpu="a cpu", cpu_features=("avx2",), cores=2, python="3.11"),
        versions={"onnxruntime": "1.27.0"},
    )


def images(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((8, 3, 4, 4), dtype=np.float32)


def export(folder: Path, model: onnx.ModelProto, precision: Precision = Precision.FLOAT32) -> Card:
    folder.mkdir()
    onnx.save(model, folder / MODEL)
    return write_card(folder, provenance(precision), make_reference(folder / MODEL, [images()]))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[Precision, Path]:
    root = tmp_path_factory.mktemp("exported")
    for precision in Precision:
        export(root / precision.value, classifier(precision), precision)
    return {precision: root / precision.value for precision in Precision}


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def failed(checks: list[Check]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / CARD).read_text())
    change(content)
    (folder / CARD).write_text(json.dumps(content))


def accept(folder: Path, file: str, section: str) -> None:
    """Make a card state the digest that a file has now."""
    digest = sha256(folder / file)
    change_card(folder, lambda card: card[section].update(sha256=digest))


def change_reference(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    with np.load(folder / REFERENCE) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    change(arrays)
    np.savez(folder / REFERENCE, **arrays)


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


# --- the card -----------------------------------------------------------------------------------------------


def test_the_card_says_what_the_file_is(tmp_path: Path) -> None:
    model = classifier(Precision.W8A8)
    card = export(tmp_path / "a", model, Precision.W8A8)
    assert card == read_card(tmp_path / "a")
    assert (card.study, card.trial, card.seed, card.plan.seed) == ("a-study", 7, 3, 3)
    assert card.file.sha256 == sha256(tmp_path / "a" / MODEL)
    assert card.file.size_bytes == len(model.SerializeToString())
    assert (card.file.opset, card.file.ir_version) == (21, 10)
    assert [entry.model_dump() for entry in (*card.inputs, card.output)] == [
        {"name": "image", "shape": ("batch", 3, 4, 4), "dtype": "float32"},
        {"name": "logits", "shape": ("batch", 10), "dtype": "float32"},
    ]
    assert {path.name for path in (tmp_path / "a").iterdir()} == {MODEL, CARD, REFERENCE}


def test_the_card_gives_intervals_of_the_splits_that_were_read(exported: dict[Precision, Path]) -> None:
    content = json.loads((exported[Precision.FLOAT32] / CARD).read_text())
    accuracy = Accuracy(correct=90, total=100, lost=3, gained=1)
    assert list(content["accuracy"]) == ["validation"]
    figures = content["accuracy"]["validation"]
    assert (figures["low"], figures["high"]) == accuracy.interval()
    assert (figures["drop_low"], figures["drop_high"]) == accuracy.drop_interval_points()
    assert (figures["accuracy"], figures["drop_points"], figures["examples"]) == (0.9, 2.0, 100)


@pytest.mark.parametrize(
    ("precision", "tolerance", "integer", "saturates"),
    [
        (Precision.FLOAT32, FLOAT_TOLERANCE, False, False),
        (Precision.W8, FLOAT_TOLERANCE, False, False),
        (Precision.W3, FLOAT_TOLERANCE, False, False),
        (Precision.W8A8, QUANTIZED_TOLERANCE, True, True),
        (Precision.W4A8, QUANTIZED_TOLERANCE, True, False),
    ],
)
def test_the_card_says_which_kernels_the_file_relies_on(
    exported: dict[Precision, Path], precision: Precision, tolerance: float, integer: bool, saturates: bool
) -> None:
    card = read_card(exported[precision])
    assert card.reference.relative_tolerance == tolerance
    assert bool(card.file.integer_kernels) is integer
    assert any("VNNI" in note for note in card.file.notes) is saturates


def test_mixed_precision_names_the_release_that_answers_otherwise(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    onnx.save(classifier(Precision.W4A8), tmp_path / "a" / MODEL)
    mixed = provenance(Precision.W4A8)
    precisions = {"head": Precision.W4A8, "other": Precision.FLOAT32}
    plan = Plan(quantization=QuantizationSpec(precisions=precisions))
    candidate = mixed.candidate.model_copy(update={"plan": plan})
    reference = make_reference(tmp_path / "a" / MODEL, [images()])
    fields = {name: getattr(mixed, name) for name in mixed.__dataclass_fields__} | {"candidate": candidate}
    assert any("1.21" in note for note in write_card(tmp_path / "a", Provenance(**fields), reference).file.notes)


@pytest.mark.parametrize(
    ("opset", "ir_version", "least"),
    [(17, 8, "1.17"), (20, 9, "1.17"), (21, 9, "1.18"), (20, 10, "1.18"), (21, 10, "1.18"), (22, 10, "1.22"),
     (23, 10, "1.23"), (21, 11, "1.23"), (25, 13, "1.24")],
)  # fmt: skip
def test_the_least_runtime_knows_opset_and_ir_version(opset: int, ir_version: int, least: str) -> None:
    model = model_of([helper.make_node("Relu", ["image"], ["logits"])], [], ["batch", 3, 4, 4], opset)
    model.ir_version = ir_version
    assert least_onnxruntime(model) == least


def test_a_file_newer_than_all_known_releases_needs_the_release_at_hand() -> None:
    model = model_of([helper.make_node("Relu", ["image"], ["logits"])], [], ["batch", 3, 4, 4], 99)
    assert ort.__version__.startswith(least_onnxruntime(model))


@pytest.mark.parametrize("precision", list(Precision))
def test_the_least_runtime_subtracts_what_the_file_subtracts(
    exported: dict[Precision, Path], precision: Precision
) -> None:
    """Before 1.21 ONNX Runtime has no kernel for the subtraction of 8-bit integers."""
    model = onnx.load(exported[precision] / MODEL)
    int8 = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.INT8}
    subtracts = any(node.op_type == "Sub" and int8 & set(node.input) for node in model.graph.node)
    assert read_card(exported[precision]).file.least_onnxruntime == ("1.22" if subtracts else "1.18")


def test_the_card_needs_no_torch() -> None:
    code = "import sys, autocompress.deploy.card; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- what holds ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", list(Precision))
def test_an_export_passes_all_checks(exported: dict[Precision, Path], precision: Precision) -> None:
    checks = verify_folder(exported[precision])
    assert [check.name for check in checks] == CHECKS
    assert failed(checks) == []


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.W2, Precision.W8A8, Precision.W3A8])
def test_plain_onnxruntime_reproduces_the_stored_outputs(exported: dict[Precision, Path], precision: Precision) -> None:
    card = json.loads((exported[precision] / "card.json").read_text())
    session = ort.InferenceSession(exported[precision] / "model.onnx", providers=["CPUExecutionProvider"])
    with np.load(exported[precision] / "reference.npz") as stored:
        feeds = {entry["name"]: stored[f"input.{entry['name']}"] for entry in card["inputs"]}
        expected = stored[f"output.{card['output']['name']}"]
    (found,) = session.run([card["output"]["name"]], feeds)
    assert expected.shape == (8, 10)
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT_TOLERANCE * np.abs(expected).max())


def test_inputs_may_be_several_and_integers(tmp_path: Path) -> None:
    tokens = ["ids", "file"]  # the name of an argument of numpy's writer
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "length"]) for name in tokens]
    nodes = [
        helper.make_node("Mul", tokens, ["product"]),
        helper.make_node("Cast", ["product"], ["logits"], to=TensorProto.FLOAT),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "length"])]
    graph = helper.make_graph(nodes, "g", inputs, outputs)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / MODEL)
    arrays = [np.arange(10).reshape(2, 5), np.arange(10)[::-1].reshape(2, 5)]
    card = write_card(tmp_path, provenance(), make_reference(tmp_path / MODEL, arrays))
    assert [(entry.name, entry.dtype) for entry in card.inputs] == [("ids", "int64"), ("file", "int64")]
    assert failed(verify_folder(tmp_path)) == []


# --- what does not ------------------------------------------------------------------------------------------


def other_model(folder: Path) -> None:
    onnx.save(classifier(Precision.W8A8, seed=5), folder / MODEL)
    accept(folder, MODEL, "file")


def renamed_output(folder: Path) -> None:
    model = onnx.load(folder / MODEL)
    for node in model.graph.node:
        node.output[:] = ["scores" if name == "logits" else name for name in node.output]
    model.graph.output[0].name = "scores"
    onnx.save(model, folder / MODEL)
    accept(folder, MODEL, "file")


def no_model(folder: Path) -> None:
    (folder / MODEL).write_bytes(b"no model")
    accept(folder, MODEL, "file")


def forged_output(folder: Path) -> None:
    change_reference(folder, lambda arrays: arrays["output.logits"].__imul__(1.2))
    accept(folder, REFERENCE, "reference")


def unknown_output(folder: Path) -> None:
    change_reference(folder, lambda arrays: arrays["output.logits"].fill(np.nan))
    accept(folder, REFERENCE, "reference")


def missing_input(folder: Path) -> None:
    change_reference(folder, lambda arrays: arrays.pop("input.image"))
    accept(folder, REFERENCE, "reference")


def fewer_examples(folder: Path) -> None:
    change_reference(folder, lambda arrays: arrays.update({name: a[:1] for name, a in arrays.items()}))
    accept(folder, REFERENCE, "reference")


def other_shape(folder: Path) -> None:
    change_reference(folder, lambda arrays: arrays.update({"output.logits": arrays["output.logits"][:, :9]}))
    accept(folder, REFERENCE, "reference")


def no_archive(folder: Path) -> None:
    (folder / REFERENCE).write_bytes(b"PK\x03\x04 no archive")
    accept(folder, REFERENCE, "reference")


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda folder: (folder / CARD).unlink(), "card"),
        (lambda folder: (folder / CARD).write_bytes(b"\xff"), "card"),
        (lambda folder: (folder / CARD).write_text("{"), "card"),
        (lambda folder: (folder / CARD).write_text("[]"), "card"),
        (lambda folder: (folder / CARD).write_text("[" * 100_000), "card"),
        (lambda folder: change_card(folder, lambda card: card.pop("file")), "card"),
        (lambda folder: change_card(folder, lambda card: card.update(schema_version=2)), "card"),
        (lambda folder: change_card(folder, lambda card: card.update(model="../../model.onnx")), "card"),
        (lambda folder: change_card(folder, lambda card: card["file"].update(path="/etc/passwd")), "card"),
        (
            lambda folder: change_card(folder, lambda card: card["reference"].update(relative_tolerance=9)),
            "card",
        ),
        (lambda folder: (folder / MODEL).unlink(), "checksum of model.onnx"),
        (lambda folder: flip(folder / MODEL, 0), "checksum of model.onnx"),
        (lambda folder: flip(folder / MODEL, -1), "checksum of model.onnx"),
        (lambda folder: flip(folder / MODEL, 500), "checksum of model.onnx"),
        (
            lambda folder: change_card(folder, lambda card: card["file"].update(sha256="0" * 64)),
            "checksum of model.onnx",
        ),
        (lambda folder: (folder / REFERENCE).unlink(), "checksum of reference.npz"),
        (lambda folder: flip(folder / REFERENCE, 300), "checksum of reference.npz"),
        (
            lambda folder: change_reference(folder, lambda arrays: arrays["output.logits"].__iadd__(np.float32(1e-6))),
            "checksum of reference.npz",
        ),
        (no_model, "model loads"),
        (renamed_output, "inputs and output"),
        (
            lambda folder: change_card(folder, lambda card: card["inputs"][0].update(shape=["batch", 3, 4, 5])),
            "inputs and output",
        ),
        (
            lambda folder: change_card(folder, lambda card: card["inputs"][0].update(dtype="uint8")),
            "inputs and output",
        ),
        (other_model, "reference outputs"),
        (forged_output, "reference outputs"),
        (unknown_output, "reference outputs"),
        (missing_input, "reference outputs"),
        (fewer_examples, "reference outputs"),
        (other_shape, "reference outputs"),
        (no_archive, "reference outputs"),
    ],
)
def test_what_differs_from_the_card_fails_its_check(
    exported: dict[Precision, Path], tmp_path: Path, spoil: Callable[[Path], object], check: str
) -> None:
    folder = copied(exported[Precision.W8A8], tmp_path)
    spoil(folder)
    checks = verify_folder(folder)
    assert failed(checks) == [check]
    assert [entry.name for entry in checks] == CHECKS[: CHECKS.index(check) + 1]
    assert "\n" not in checks[-1].detail


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="check the path"):
        verify_folder(tmp_path / "nowhere")


def test_a_card_of_another_schema_says_so(exported: dict[Precision, Path], tmp_path: Path) -> None:
    folder = copied(exported[Precision.W8], tmp_path)
    change_card(folder, lambda card: card.update(schema_version=2))
    with pytest.raises(VerificationFailed, match="cards of schema 1 are read; it is 2"):
        read_card(folder)


def test_references_run_no_code(exported: dict[Precision, Path], tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    folder = copied(exported[Precision.W8A8], tmp_path)
    np.savez(folder / REFERENCE, **{"input.image": np.array([Payload()], dtype=object)})
    with zipfile.ZipFile(folder / REFERENCE) as archive:
        assert b"touched" in archive.read("input.image.npy")
    accept(folder, REFERENCE, "reference")
    assert failed(verify_folder(folder)) == ["reference outputs"]
    assert not (tmp_path / "touched").exists()


# --- tolerances ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.W4, Precision.W8A8, Precision.W2A8])
@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.1, False)])
def test_outputs_may_differ_by_the_stated_tolerance(
    exported: dict[Precision, Path], tmp_path: Path, precision: Precision, share: float, passes: bool
) -> None:
    """One output that is neither the largest nor an answer moves down."""
    folder = copied(exported[precision], tmp_path)
    tolerance = read_card(folder).reference.relative_tolerance
    reference = make_reference(folder / MODEL, [images()])
    moved = reference.output.copy()
    moved.flat[np.abs(moved).argmin()] -= share * tolerance * np.abs(moved).max()
    write_card(folder, provenance(precision), Reference(reference.inputs, moved))
    assert (failed(verify_folder(folder)) == []) is passes


@pytest.mark.parametrize(
    ("expected", "passes"),
    [([0.99996, 1.00001], True), ([0.99993, 1.00006], False), ([1.00006, 0.99993], True)],
)
def test_answers_may_change_only_in_a_tie_within_the_tolerance(
    tmp_path: Path, expected: list[float], passes: bool
) -> None:
    """The file answers 1.0 and 0.99999; each reference is within 1e-4 of both."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["logits"])], "g", inputs, outputs)
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    onnx.save(model, tmp_path / MODEL)
    x = np.array([[1.0, 0.99999]], np.float32)
    write_card(tmp_path, provenance(), Reference((x,), np.array([expected], np.float32)))
    checks = verify_folder(tmp_path)
    assert (failed(checks) == []) is passes
    assert passes or "answers must be those of the reference; 1 changed" in checks[-1].detail


def test_a_failed_comparison_says_where_the_file_may_answer_otherwise(
    exported: dict[Precision, Path], tmp_path: Path
) -> None:
    folder = copied(exported[Precision.W8A8], tmp_path)
    forged_output(folder)
    assert "without VNNI" in verify_folder(folder)[-1].detail
