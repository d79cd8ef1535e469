"""What ships beside ``model.onnx``: a card that says what the file is, and references to check it by.

An export is a folder of three files whose names are fixed: no path in a card is ever followed. The card is
JSON, the references are plain arrays; reading either runs no code.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from autocompress.candidate import Accuracy, Candidate, Measurement, Origin, Score
from autocompress.deploy.encoding import count_fused
from autocompress.deploy.session import open_session, predict
from autocompress.errors import RunError, TrialFailed, VerificationFailed
from autocompress.plan import Plan

MODEL, CARD, REFERENCE = "model.onnx", "card.json", "reference.npz"
SCHEMA_VERSION: Final = 1

FLOAT_TOLERANCE = 1e-4
QUANTIZED_TOLERANCE = 0.05
"""Largest difference of an output, relative to the largest reference output.

Other kernels add in another order, and a sum that lands on the other side of a rounding edge moves an 8-bit
activation by a step. As a stand-in for other processors, an integer ResNet-56 was computed in float
throughout: its outputs moved by up to 2.7 %, and 1 to 1.5 % of its answers changed.
"""

_METHOD = (
    "median in one process without torch, on fixed threads: warmed up, then short blocks of this file and "
    "of the uncompressed float32 file in turn; medians over the pairs of blocks in which both ran fastest"
)
_SATURATION = (
    "8-bit weights on integer kernels: x86 processors without VNNI may saturate sums of unsigned activations "
    "and signed weights, and then answer differently"
)
_SKIP_1_21 = (
    "ONNX Runtime 1.21 quantises float layers between quantised tensors by itself, which moves answers by "
    "about 1 %; the releases tried before and after it do not"
)
# (release, newest opset, newest IR version it loads), tried with each; from 1.18 on with our own files
# too. Nothing older than the first was tried.
_RELEASES = (("1.17", 20, 9), ("1.18", 21, 10), ("1.22", 22, 10), ("1.23", 23, 11), ("1.24", 25, 13))
_INT8_SUBTRACTION = "1.22"  # 1.21 has the kernel, and the fault above
_INTEGER_KERNELS = ("QLinear", "QGemm", "MatMulInteger", "ConvInteger", "DynamicQuantize")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorFacts(_Section):
    """One input or output; a dimension is a number, the name of a free dimension, or None."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str


class AccuracyFigures(_Section):
    """Accuracy in [0, 1] and the paired drop against the uncompressed file in points; 95 % intervals."""

    accuracy: float
    low: float
    high: float
    drop_points: float
    drop_low: float
    drop_high: float
    examples: int


class LatencyConditions(_Section):
    """How latency was measured; the figures are in the measurement."""

    runtime: str
    threads: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    sequence_length: int | None = Field(default=None, ge=1, description="of inputs of any length")
    method: str = _METHOD


class Machine(_Section):
    """Where the file was measured."""

    machine: str
    system: str
    cpu: str
    cpu_features: tuple[str, ...]
    cores: int
    python: str


class FileFacts(_Section):
    """``model.onnx``.

    Attributes:
        least_onnxruntime: first release that loads a file of this opset, IR version and encoding.
        tested_onnxruntime: the release that made the reference outputs.
        integer_kernels: how often the tested release runs each integer operator.
        notes: where the file may not answer as here.
    """

    sha256: str
    size_bytes: int
    opset: int
    ir_version: int
    least_onnxruntime: str
    tested_onnxruntime: str
    integer_kernels: dict[str, int]
    notes: tuple[str, ...] = ()


class ReferenceFacts(_Section):
    """``reference.npz``: ``input.<name>`` and ``output.<name>``, examples of the validation split."""

    sha256: str
    examples: int
    relative_tolerance: float = Field(gt=0, le=QUANTIZED_TOLERANCE)


class Card(_Section):
    """All that is known of an exported file."""

    schema_version: Literal[1] = SCHEMA_VERSION
    study: str
    trial: int
    origin: Origin
    name: str
    seed: int
    file: FileFacts
    inputs: tuple[TensorFacts, ...]
    output: TensorFacts
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    accuracy: dict[Literal["validation", "test"], AccuracyFigures]
    measurement: Measurement
    latency: LatencyConditions
    machine: Machine
    versions: dict[str, str]
    reference: ReferenceFacts
    plan: Plan


@dataclass(frozen=True)
class Provenance:
    """What a card says beyond what can be read from the file.

    Attributes:
        preprocessing: what a user of the file does to an input; plain JSON values.
        machine: where the candidate was measured.
        versions: of the packages that made it.
    """

    study: str
    candidate: Candidate
    preprocessing: dict[str, Any]
    class_names: tuple[str, ...]
    latency: LatencyConditions
    machine: Machine
    versions: dict[str, str]


@dataclass(frozen=True)
class Reference:
    """Inputs [examples, ...] in the file's order and the file's output [examples, ...] for them."""

    inputs: tuple[NDArray[Any], ...]
    output: NDArray[np.float32]


@dataclass(frozen=True)
class Check:
    """One thing that was verified, and what was found."""

    name: str
    passed: bool
    detail: str


# --- writing ------------------------------------------------------------------------------------------------


def make_reference(model: Path, inputs: Sequence[NDArray[Any]]) -> Reference:
    """Run a file on reference inputs, one array [examples, ...] for each of its inputs.

    Raises:
        TrialFailed: the file does not load or does not take the inputs.
    """
    return Reference(tuple(inputs), predict(open_session(model, 1), [tuple(inputs)]))


def write_card(folder: Path, provenance: Provenance, reference: Reference) -> Card:
    """Write ``card.json`` and ``reference.npz`` beside the ``model.onnx`` of a folder.

    Raises:
        TrialFailed: the file does not load.
    """
    candidate = provenance.candidate
    assert candidate.measurement is not None, "only measured candidates have a card"
    *inputs, output = _interface(folder)
    model = onnx.load(folder / MODEL, load_external_data=False)
    _write_reference(folder / REFERENCE, reference, [entry.name for entry in inputs], output.name)
    card = Card(
        study=provenance.study,
        trial=candidate.trial,
        origin=candidate.origin,
        name=candidate.name,
        seed=candidate.plan.seed,
        file=_file_facts(folder / MODEL, model, candidate.plan),
        inputs=tuple(inputs),
        output=output,
        preprocessing=provenance.preprocessing,
        class_names=provenance.class_names,
        accuracy=_accuracy_figures(candidate.measurement),
        measurement=candidate.measurement,
        latency=provenance.latency,
        machine=provenance.machine,
        versions=provenance.versions,
        reference=ReferenceFacts(
            sha256=sha256(folder / REFERENCE),
            examples=len(reference.output),
            relative_tolerance=QUANTIZED_TOLERANCE if _is_quantized(model) else FLOAT_TOLERANCE,
        ),
        plan=candidate.plan,
    )
    (folder / CARD).write_text(card.model_dump_json(indent=2) + "\n", encoding="utf-8")
    return card


def sha256(path: Path) -> str:
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def least_onnxruntime(model: onnx.ModelProto) -> str:
    """First release of ONNX Runtime that loads a file like this one and answers as intended.

    A file newer than any release in the table needs the release at hand, as far as is known.
    """
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 1)
    fitting = (name for name, newest, ir in _RELEASES if opset <= newest and model.ir_version <= ir)
    least = next(fitting, ".".join(ort.__version__.split(".")[:2]))
    return max(least, _INT8_SUBTRACTION, key=_as_numbers) if _subtracts_int8(model) else least


def _as_numbers(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _subtracts_int8(model: onnx.ModelProto) -> bool:
    int8 = {t.name for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    return any(node.op_type == "Sub" and int8 & set(node.input) for node in model.graph.node)


def _file_facts(path: Path, model: onnx.ModelProto, plan: Plan) -> FileFacts:
    integer = {op: n for op, n in sorted(count_fused(path).items()) if op.startswith(_INTEGER_KERNELS)}
    precisions = plan.quantization.precisions.values()
    saturates = bool(integer) and any(p.without_saturation() is not p for p in precisions)
    mixed = _is_quantized(model) and not all(p.integer_activations for p in precisions)
    notes = ((_SATURATION, saturates), (_SKIP_1_21, mixed))
    return FileFacts(
        sha256=sha256(path),
        size_bytes=path.stat().st_size,
        opset=next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        ir_version=model.ir_version,
        least_onnxruntime=least_onnxruntime(model),
        tested_onnxruntime=ort.__version__,
        integer_kernels=integer,
        notes=tuple(note for note, applies in notes if applies),
    )


def _is_quantized(model: onnx.ModelProto) -> bool:
    return any(node.op_type in ("QuantizeLinear", "DynamicQuantizeLinear") for node in model.graph.node)


def _interface(folder: Path) -> list[TensorFacts]:
    """All inputs, then the output."""
    session = open_session(folder / MODEL, 1)
    return [_tensor_facts(node) for node in [*session.get_inputs(), session.get_outputs()[0]]]


def _tensor_facts(node: Any) -> TensorFacts:
    dtype = node.type.removeprefix("tensor(").removesuffix(")")
    return TensorFacts(
        name=node.name,
        shape=tuple(node.shape),
        dtype={"float": "float32", "double": "float64"}.get(dtype, dtype),
    )


def _accuracy_figures(measurement: Measurement) -> dict[Literal["validation", "test"], AccuracyFigures]:
    splits: tuple[tuple[Literal["validation", "test"], Accuracy | Score | None], ...] = (
        ("validation", measurement.validation),
        ("test", measurement.test),
    )
    return {split: _figures(accuracy) for split, accuracy in splits if accuracy is not None}


def _figures(accuracy: Accuracy | Score) -> AccuracyFigures:
    low, high = accuracy.interval()
    drop_low, drop_high = accuracy.drop_interval_points()
    return AccuracyFigures(
        accuracy=accuracy.fraction,
        low=low,
        high=high,
        drop_points=accuracy.drop_points,
        drop_low=drop_low,
        drop_high=drop_high,
        examples=accuracy.total,
    )


def _write_reference(path: Path, reference: Reference, inputs: Sequence[str], output: str) -> None:
    arrays = {f"input.{name}": array for name, array in zip(inputs, reference.inputs, strict=True)}
    np.savez_compressed(path, allow_pickle=False, **arrays, **{f"output.{output}": reference.output})


# --- reading ------------------------------------------------------------------------------------------------


def read_card(folder: Path) -> Card:
    """The card of an export.

    Raises:
        VerificationFailed: there is none, it is damaged, or its schema is unknown.
    """
    path = folder / CARD
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise VerificationFailed(f"cards of schema {SCHEMA_VERSION} are read; it is {version!r}")
        return Card.model_validate(content)
    except FileNotFoundError:
        raise VerificationFailed(f"an export has a {CARD}; {folder} has none") from None
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise VerificationFailed(f"{CARD} must be as it was written; {where}: {problem['msg']}") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VerificationFailed(f"{CARD} must be as it was written; it is damaged ({type(error).__name__})") from error


def read_reference(folder: Path, card: Card) -> Reference:
    """The reference inputs and outputs of an export.

    Raises:
        VerificationFailed: they are missing, damaged, or not those of the card.
    """
    try:
        with np.load(folder / REFERENCE, allow_pickle=False) as arrays:
            inputs = tuple(np.asarray(arrays[f"input.{entry.name}"]) for entry in card.inputs)
            return Reference(inputs, np.asarray(arrays[f"output.{card.output.name}"], np.float32))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise VerificationFailed(f"{REFERENCE} must be as it was written; it is not: {error}") from error


# --- verifying ----------------------------------------------------------------------------------------------


def verify_folder(folder: Path) -> list[Check]:
    """Check that an export is what its card says and answers as it did.

    The checks are ``card``, ``checksum of model.onnx``, ``checksum of reference.npz``, ``model loads``,
    ``inputs and output`` and ``reference outputs``. They end at the first that fails: the next rest on it.

    Raises:
        RunError: the folder does not exist.
    """
    if not folder.is_dir():
        raise RunError(f"an export is a folder; {folder} is none; check the path")
    checks = [_check("card", lambda: _describe(read_card(folder)))]
    if not checks[0].passed:
        return checks
    card = read_card(folder)
    steps: dict[str, Callable[[], str]] = {
        f"checksum of {MODEL}": lambda: _same_digest(folder / MODEL, card.file.sha256),
        f"checksum of {REFERENCE}": lambda: _same_digest(folder / REFERENCE, card.reference.sha256),
        "model loads": lambda: _loads(folder, card),
        "inputs and output": lambda: _same_interface(folder, card),
        "reference outputs": lambda: _same_outputs(folder, card),
    }
    for name, step in steps.items():
        checks.append(_check(name, step))
        if not checks[-1].passed:
            break
    return checks


def _check(name: str, step: Callable[[], str]) -> Check:
    try:
        return Check(name, True, step())
    except (VerificationFailed, TrialFailed) as error:
        return Check(name, False, str(error))


def _describe(card: Card) -> str:
    return f"trial {card.trial} of study {card.study}, schema {card.schema_version}"


def _same_digest(path: Path, stated: str) -> str:
    try:
        found = sha256(path)
    except OSError as error:
        raise VerificationFailed(f"an export has a {path.name}; {error.strerror}: {path}") from error
    if found != stated:
        raise VerificationFailed(f"sha256 must be {stated}; it is {found}")
    return f"sha256 {found}"


def _loads(folder: Path, card: Card) -> str:
    open_session(folder / MODEL, 1)
    return f"onnxruntime {ort.__version__}; it needs {card.file.least_onnxruntime} or later"


def _same_interface(folder: Path, card: Card) -> str:
    stated, found = [*card.inputs, card.output], _interface(folder)
    if found != stated:
        shown = "; ".join(_show_tensors(entries) for entries in (stated, found))
        raise VerificationFailed(f"inputs and output must be as the card says; stated, then found: {shown}")
    return _show_tensors(found)


def _show_tensors(entries: Sequence[TensorFacts]) -> str:
    return ", ".join(f"{entry.name} {entry.dtype} {list(entry.shape)}" for entry in entries)


def _same_outputs(folder: Path, card: Card) -> str:
    """Compare all outputs, and the top-1 answers where the reference is no tie within the tolerance."""
    reference, tolerance = read_reference(folder, card), card.reference.relative_tolerance
    expected, found = reference.output, make_reference(folder / MODEL, reference.inputs).output
    if expected.shape != found.shape or len(expected) != card.reference.examples:
        raise VerificationFailed(
            f"outputs must be of shape {list(found.shape)} for {card.reference.examples} examples; "
            f"{REFERENCE} has {list(expected.shape)}"
        )
    scale = max(float(np.abs(expected).max()), 1e-12)
    error = float(np.abs(found - expected).max()) / scale
    if not error <= tolerance:
        raise VerificationFailed(
            f"outputs must be within {tolerance:g} of the reference, relative; they are off by {error:.2e}{_hint(card)}"
        )
    chosen = np.take_along_axis(expected, found.argmax(axis=-1)[..., None], axis=-1)[..., 0]
    changed = int((expected.max(axis=-1) - chosen > tolerance * scale).sum())
    if changed:
        raise VerificationFailed(f"answers must be those of the reference; {changed} changed{_hint(card)}")
    return f"{len(expected)} examples; largest relative difference {error:.1e}, at most {tolerance:g} allowed"


def _hint(card: Card) -> str:
    return "".join(f"; {note}" for note in card.file.notes)
