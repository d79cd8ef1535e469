"""Linear layers on sequences and tables of embeddings: the file answers as torch simulates, on the intended kernels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.fx
import torch.nn.functional as F
from graphs import folded
from onnx import numpy_helper
from processors import EIGHT_BITS, EIGHT_BITS_DYNAMIC
from torch import Tensor, nn

from autocompress.compression.quantization import (
    attach_weight_quantizers_,
    calibrate_,
    insert_activation_quantizers_,
    with_rounded_biases,
)
from autocompress.deploy.encoding import count_fused
from autocompress.deploy.export import export_graph
from autocompress.deploy.session import PROVIDERS, open_session, predict, session_options
from autocompress.layers import weight_layers
from autocompress.pipeline import write_file
from autocompress.plan import Plan, Precision, QuantizationSpec

WORDS, WIDTH, HIDDEN, CLASSES = 3000, 16, 40, 8
AXES = ({1: "length"}, {1: "length"})


class Other(nn.Module):
    """A linear layer whose weight lies the other way round, on sequences made matrices (GPT-2)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = (
            nn.Parameter(torch.randn(inputs, outputs) / inputs**0.5),
            nn.Parameter(torch.randn(outputs)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).reshape(*x.shape[:-1], -1)


class Reader(nn.Module):
    """Words and their kinds -> classes: three layers on sequences, one on matrices."""

    def __init__(self, other_way_round: bool = False) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(WORDS, WIDTH), nn.Embedding(3, WIDTH)
        self.up = Other(WIDTH, HIDDEN) if other_way_round else nn.Linear(WIDTH, HIDDEN)
        self.gate = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)
        nn.init.normal_(self.head.weight)  # so that answers differ

    def forward(self, words: Tensor, kinds: Tensor) -> Tensor:
        x = self.words(words) + self.kinds(kinds)
        x = x + self.down(F.gelu(self.up(x)) * torch.sigmoid(self.gate(x)))
        return self.head(x.mean(dim=1))


def texts(rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, WORDS, (rows, length), generator=generator),
        torch.randint(0, 3, (rows, length), generator=generator),
    )


@dataclass(frozen=True)
class Made:
    """A file and the network that simulates it."""

    path: Path
    deployable: torch.fx.GraphModule
    precisions: dict[str, Precision]


def make(path: Path, precision: Precision, other_way_round: bool = False) -> Made:
    torch.manual_seed(0)
    network = folded(Reader(other_way_round), *texts(2, 5), axes=AXES)
    precisions = {name: precision.for_layer(layer.kind) for name, layer in weight_layers(network).items()}
    insert_activation_quantizers_(network, precisions)
    graph = export_graph(network, texts(2, 5), ("words", "kinds"), AXES)
    attach_weight_quantizers_(network, precisions)
    calibrate_(network, [texts(64, 9, seed=n) for n in range(4)])
    write_file(graph, network, Plan(quantization=QuantizationSpec(precisions=precisions)), path)
    return Made(path, network.eval(), precisions)


PRECISIONS = [
    Precision.FLOAT32, EIGHT_BITS, EIGHT_BITS_DYNAMIC, Precision.W4A8_DYNAMIC, Precision.W3A8, Precision.W4,
    Precision.W8,
]  # fmt: skip


@pytest.fixture(scope="module", params=PRECISIONS, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("made") / "model.onnx", request.param)


def compared(made: Made, batches: list[tuple[Tensor, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the file and of torch."""
    integer = any(precision.integer_activations for precision in made.precisions.values())
    simulation = with_rounded_biases(made.deployable) if integer else made.deployable
    with torch.no_grad():
        expected = np.concatenate([simulation(*batch).numpy() for batch in batches])
    found = predict(open_session(made.path, 1), [tuple(x.numpy() for x in batch) for batch in batches])
    return found, expected


def agree(made: Made, found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    if any(precision.integer_activations for precision in made.precisions.values()):
        assert (found.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.99
        assert np.abs(found - expected).mean() < 0.02 * expected.std()
    else:
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


# Answers


def test_the_file_agrees_with_torch(made: Made) -> None:
    found, expected = compared(made, [texts(100, 9, seed=10 + n) for n in range(5)])
    assert np.unique(expected.argmax(axis=1), return_counts=True)[1].max() < 350
    agree(made, found, expected)


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 40), (37, 3)])
def test_it_runs_with_another_batch_size_and_length(made: Made, rows: int, length: int) -> None:
    found, expected = compared(made, [texts(rows, length, seed=n) for n in range(1 + 200 // rows)])
    agree(made, found, expected)


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.W4, Precision.W4A8_DYNAMIC, EIGHT_BITS], ids=str)
def test_weights_that_lie_the_other_way_round_answer_alike(precision: Precision, tmp_path: Path) -> None:
    made = make(tmp_path / "model.onnx", precision, other_way_round=True)
    assert made.precisions["up"] is precision
    found, expected = compared(made, [texts(100, 9, seed=10 + n) for n in range(3)])
    agree(made, found, expected)


# Kernels


def test_each_layer_runs_on_the_intended_kernel(made: Made) -> None:
    operators = count_fused(made.path)
    precision = made.precisions["up"]
    integer = sum(operators.get(name, 0) for name in ("MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm"))
    floats = sum(operators.get(name, 0) for name in ("MatMul", "Gemm", "FusedMatMul", "FusedGemm"))
    assert not operators.keys() & {"DequantizeLinear", "MatMulInteger", "BitShift", "Transpose"}
    if not precision.integer_activations:
        assert (integer, floats) == (0, 4)
        return
    assert (integer, floats) == (4, 0)
    if precision.dynamic:
        # two layers read one tensor, which is quantised once for both; each of the others has it fused
        written = [node.op_type for node in onnx.load(made.path).graph.node]
        assert (written.count("DynamicQuantizeLinear"), written.count("MatMulInteger")) == (3, 4)
        assert operators["DynamicQuantizeLinear"] == 1
        assert (operators["MatMulIntegerToFloat"], operators["DynamicQuantizeMatMul"]) == (2, 2)
    else:
        assert (operators["MatMulIntegerToFloat"], operators["QGemm"]) == (3, 1)
        assert operators["QuantizeLinear"] == 3


def optimised(path: Path, folder: Path) -> onnx.ModelProto:
    """The graph that ONNX Runtime really runs."""
    options = session_options(threads=1)
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    ort.InferenceSession(str(path), options, providers=PROVIDERS)
    return onnx.load(options.optimized_model_filepath)


def test_no_float_table_is_made_of_a_quantised_one(made: Made, tmp_path: Path) -> None:
    model = optimised(made.path, tmp_path)
    large = [t for t in model.graph.initializer if np.prod(t.dims, dtype=int) >= WORDS * WIDTH]
    assert len(large) == 1
    table = numpy_helper.to_array(large[0])
    assert table.shape == (WORDS, WIDTH)
    if made.precisions["words"] is Precision.FLOAT32:
        assert table.dtype == np.float32
    else:
        limit = 2 ** ((made.precisions["words"].weight_bits or 0) - 1)
        assert table.dtype == np.int8
        assert -limit <= table.min() and table.max() < limit


# Bytes


def test_the_file_has_as_many_bits_as_its_weights(made: Made) -> None:
    bits = made.precisions["words"].weight_bits
    layers = weight_layers(made.deployable).values()
    weights = [(WORDS, WIDTH), (3, WIDTH), (HIDDEN, WIDTH), (HIDDEN, WIDTH), (WIDTH, HIDDEN), (CLASSES, WIDTH)]
    assert len(layers) == len(weights)
    stored = sum(int(np.prod(shape)) for shape in weights) * (bits or 32) / 8
    # a scale for each row of a table and each output of a layer
    scales = 0 if bits is None else 4 * (WORDS + 3 + 2 * HIDDEN + WIDTH + CLASSES)
    size = made.path.stat().st_size
    assert stored + scales <= size < stored + scales + 5_000


def test_a_table_of_4_bits_is_stored_packed(made: Made) -> None:
    if made.precisions["words"] is not Precision.W4:
        pytest.skip("of 4 bits only")
    model = onnx.load(made.path)
    (packed,) = (t for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8 and len(t.dims) == 2)
    assert np.prod(packed.dims, dtype=int) >= WORDS * WIDTH // 2
    assert all(np.prod(t.dims, dtype=int) <= WORDS for t in model.graph.initializer if t.name != packed.name)
