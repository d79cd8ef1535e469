"""Grids, their gradients and their places are those of the papers, of ONNX and of ONNX Runtime's kernels."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graphs import folded, targets
from hypothesis import given
from hypothesis import strategies as st
from networks import tiny_resnet
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from autocompress.compression.quantization import (
    ActivationFakeQuantizer,
    DynamicActivationFakeQuantizer,
    WeightFakeQuantizer,
    attach_weight_quantizers_,
    best_steps,
    calibrate_,
    deployment_tensors,
    insert_activation_quantizers_,
    integer_weights,
    quantized_tensors,
    weight_range,
)
from autocompress.deploy.encoding import count_fused
from autocompress.layers import aten, trace, weight_layers
from autocompress.pipeline import Bench, draft
from autocompress.plan import Plan, Precision, QuantizationSpec
from autocompress.stage_clock import StageClock

BITS = (2, 3, 4, 6, 8)
bits_of_all_kinds = pytest.mark.parametrize("bits", BITS)


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def squared_error(rows: Tensor, steps: Tensor, bits: int) -> Tensor:
    """Of rounding each row to its grid; written without the code under test."""
    grid = torch.arange(-(2 ** (bits - 1)), 2 ** (bits - 1)) * steps[:, None]
    edges = (grid[:, 1:] + grid[:, :-1]) / 2
    nearest = grid.gather(1, torch.searchsorted(edges, rows.contiguous()))
    return (nearest - rows).square().sum(dim=1)


# Batch norm


def test_folding_preserves_the_outputs(resnet20: nn.Module) -> None:
    before = copy.deepcopy(resnet20.state_dict())
    images = gaussian(4, 1, 16, 16)
    graph = folded(resnet20, images)
    assert aten.batch_norm.default not in targets(graph)
    assert weight_layers(graph).keys() == weight_layers(trace(resnet20, (images,))).keys()
    with torch.no_grad():
        torch.testing.assert_close(graph(images), resnet20(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in resnet20.state_dict().items())


def with_statistics(norm: nn.Module) -> nn.Module:
    """A norm whose every tensor does something."""
    for seed, tensor in enumerate((norm.weight, norm.bias, norm.running_mean)):
        tensor.data = gaussian(*tensor.shape, seed=seed)
    norm.running_var.copy_(torch.rand(norm.running_var.shape, generator=torch.Generator().manual_seed(9)) + 0.1)
    return norm


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("layer", "norm", "shape"),
    [
        (nn.Conv1d(3, 5, 3, padding="same"), nn.BatchNorm1d(5), (4, 3, 9)),
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), nn.BatchNorm1d(6), (4, 4, 9)),
        (nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5, eps=1e-2), (4, 3, 6, 6)),
        (nn.Conv2d(4, 4, 3, groups=4, dilation=2), nn.BatchNorm2d(4), (4, 4, 8, 8)),
        (nn.Linear(3, 5), nn.BatchNorm1d(5), (4, 3)),
    ],
)
def test_folding_is_exact(layer: nn.Module, norm: nn.Module, shape: tuple[int, ...], bias: bool) -> None:
    layer, norm = copy.deepcopy(layer).double(), with_statistics(copy.deepcopy(norm)).double()
    if not bias:
        layer.bias = None
    network = nn.Sequential(layer, norm).eval()
    x = gaussian(*shape).double()
    graph = folded(network, x)
    assert aten.batch_norm.default not in targets(graph)
    assert weight_layers(graph)["0"].bias == "0.bias"
    assert set(graph.state_dict()) == {"0.weight", "0.bias"}
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(graph(x[:1]), network(x[:1]), rtol=1e-12, atol=1e-12)


def test_a_norm_without_a_scale_of_its_own_is_folded_too() -> None:
    norm = nn.BatchNorm2d(4, affine=False)
    norm.running_mean.fill_(0.5)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norm).eval()
    images = gaussian(2, 3, 4, 4)
    graph = folded(network, images)
    assert aten.batch_norm.default not in targets(graph)
    with torch.no_grad():
        torch.testing.assert_close(graph(images), network(images))


def test_a_norm_that_follows_no_layer_stays() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    network[0].running_mean.fill_(0.5)
    images = gaussian(2, 3, 4, 4)
    graph = folded(network, images)
    assert targets(graph).count(aten.batch_norm.default) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(images), network(images))


class SeveralReaders(nn.Module):
    """A layer whose output, or whose weight, something else reads too."""

    def __init__(self, shared_weight: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.shared_weight = nn.Linear(3, 3), with_statistics(nn.BatchNorm1d(3)), shared_weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return self.norm(y) + (self.layer(x + 1) if self.shared_weight else y)


@pytest.mark.parametrize("shared_weight", [True, False])
def test_a_layer_that_something_else_reads_too_is_not_folded(shared_weight: bool) -> None:
    network, x = SeveralReaders(shared_weight).eval(), gaussian(4, 3)
    graph = folded(network, x)
    assert targets(graph).count(aten.batch_norm.default) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x))


class NormOfSequences(nn.Module):
    """The channels of the norm are positions, those of the layer are not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(3, 5), with_statistics(nn.BatchNorm1d(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x))


def test_a_norm_over_positions_is_not_folded_into_a_linear_layer() -> None:
    network, x = NormOfSequences().eval(), gaussian(4, 5, 3)
    graph = folded(network, x)
    assert targets(graph).count(aten.batch_norm.default) == 1
    with torch.no_grad():
        torch.testing.assert_close(graph(x), network(x))


# Grids of weights


def test_each_bit_less_raises_the_squared_error_about_fourfold() -> None:
    rows = gaussian(32, 576)
    errors = {bits: float(squared_error(rows, best_steps(rows, bits), bits).sum()) for bits in BITS}
    for coarse, fine in ((6, 8), (4, 6), (3, 4), (2, 3)):
        factor = (errors[coarse] / errors[fine]) ** (1 / (fine - coarse))
        # exactly four without clipping; a clipped Gaussian gains a little at the coarse end
        assert 3.2 < factor < 4.2


@bits_of_all_kinds
def test_best_steps_beat_the_maximum_and_match_a_fine_search(bits: int) -> None:
    rows = torch.cat([gaussian(16, 576), 1e-3 * gaussian(8, 576, seed=1), torch.rand(8, 576)])
    found = squared_error(rows, best_steps(rows, bits), bits)
    largest = rows.abs().amax(dim=1) / weight_range(bits)[1]
    assert (found <= squared_error(rows, largest, bits) * (1 + 1e-5)).all()
    finely = (
        torch.stack([squared_error(rows, largest * f, bits) for f in torch.linspace(0.1, 1.1, 400)]).min(dim=0).values
    )
    assert float((found / finely).mean()) < 1.06
    assert float((found / finely).max()) < 1.25


@bits_of_all_kinds
@given(data=st.data())
def test_forward_is_exactly_integers_times_scales(bits: int, data: st.DataObject) -> None:
    shape = data.draw(st.sampled_from([(3, 5), (4, 2, 3), (6, 2, 3, 3), (1, 1)]))
    weight = gaussian(*shape, seed=data.draw(st.integers(0, 1000))) * data.draw(st.sampled_from([1e-4, 1.0, 50.0]))
    quantizer = WeightFakeQuantizer(weight, bits)
    with torch.no_grad():  # as after training: any sign and size of step
        quantizer.step *= data.draw(st.sampled_from([-1.5, 0.3, 1.0, 4.0]))
    integers, scales = quantizer.integers(weight), quantizer.scales()
    low, high = weight_range(bits)
    assert integers.dtype == torch.int8
    assert low <= int(integers.min()) and int(integers.max()) <= high
    assert (scales > 0).all() and scales.shape == shape[:1]
    assert torch.equal(integers.float() * scales.reshape(-1, *[1] * (len(shape) - 1)), quantizer(weight))


def test_a_row_of_zeros_has_a_grid() -> None:
    quantizer = WeightFakeQuantizer(torch.zeros(2, 4), 4)
    assert torch.equal(quantizer(torch.zeros(2, 4)), torch.zeros(2, 4))
    assert (quantizer.scales() > 0).all()


@bits_of_all_kinds
def test_gradients_are_those_of_lsq(bits: int) -> None:
    """Esser et al. 2020, section 2.1 (equations 3 and 5), and the scale of section 2.2."""
    low, high = weight_range(bits)
    ratio = torch.tensor([[0.3, 0.7, -0.4, low - 0.8, high + 3.0, 0.0, -0.9, low - 5.0]])
    step, upstream = 0.25, gaussian(1, 8, seed=5)
    weight = (ratio * step).requires_grad_()
    quantizer = WeightFakeQuantizer(weight, bits)
    with torch.no_grad():
        quantizer.step.fill_(step)
    (quantizer(weight) * upstream).sum().backward()
    inside = (ratio > low) & (ratio < high)
    slope = torch.where(ratio <= low, low, torch.where(ratio >= high, high, ratio.round() - ratio))
    scale = 1 / np.sqrt(8 * high)
    assert quantizer.step.grad is not None and weight.grad is not None
    assert float(quantizer.step.grad) == pytest.approx(float((slope * upstream).sum() * scale), rel=1e-4)
    torch.testing.assert_close(weight.grad, torch.where(inside, upstream, 0.0))


def test_descending_on_the_step_lowers_the_error() -> None:
    weight = gaussian(4, 200)
    quantizer = WeightFakeQuantizer(weight, 3)
    with torch.no_grad():
        quantizer.step *= 2.5
    optimiser = torch.optim.SGD([quantizer.step], lr=0.5)
    start = float((quantizer(weight) - weight).detach().square().sum())
    for _ in range(200):
        optimiser.zero_grad()
        (quantizer(weight) - weight).square().sum(dim=1).mean().backward()
        optimiser.step()
    best = float(squared_error(weight, best_steps(weight, 3), 3).sum())
    assert float((quantizer(weight) - weight).detach().square().sum()) < 1.1 * best < 0.5 * start


# Grids of activations


def quantize_with_onnx(x: Tensor, scale: float, zero_point: int) -> np.ndarray:
    """What the ONNX standard says, from its reference implementation."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[n] x, float s, uint8 z) => (float[n] y) { q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z) }""")
    feeds = {"x": x.numpy(), "s": np.array(scale, np.float32), "z": np.array(zero_point, np.uint8)}
    return ReferenceEvaluator(model).run(None, feeds)[0]


@given(st.floats(2**-10, 2.0, width=32), st.integers(0, 255), st.integers(0, 1000))
def test_activations_are_rounded_as_onnx_says(scale: float, zero_point: int, seed: int) -> None:
    quantizer = ActivationFakeQuantizer()
    quantizer.scale.fill_(scale)
    quantizer.zero_point.fill_(zero_point)
    # half steps too: ties go to the even number
    x = torch.cat([gaussian(200, seed=seed) * scale * 100, torch.arange(-40, 40) * scale / 2])
    np.testing.assert_array_equal(quantizer(x).numpy(), quantize_with_onnx(x, scale, zero_point))


@pytest.fixture(scope="module")
def dynamic_quantize() -> ort.InferenceSession:
    """ONNX Runtime's own DynamicQuantizeLinear, and back to float."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[n, m] x) => (float[n, m] y, float s, uint8 z) { q, s, z = DynamicQuantizeLinear(x)
        y = DequantizeLinear(q, s, z) }""")
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@given(
    st.integers(0, 10_000),
    st.sampled_from([1e-4, 1.0, 3e3]),
    st.sampled_from([-5.0, -1.0, 0.0, 0.4, 5.0]),
    st.sampled_from([(1, 1), (1, 7), (3, 40), (17, 33)]),
)
def test_dynamic_ranges_are_those_of_the_runtime(
    dynamic_quantize: ort.InferenceSession, seed: int, scale: float, shift: float, shape: tuple[int, int]
) -> None:
    # shifted, so that all values are of one sign too: the grid holds 0 all the same
    x = (gaussian(*shape, seed=seed) + shift) * scale
    expected, step, _ = dynamic_quantize.run(None, {"x": x.numpy()})
    np.testing.assert_array_equal(DynamicActivationFakeQuantizer()(x).numpy(), expected)
    assert float((torch.from_numpy(expected) - x).abs().max()) <= 0.5001 * float(step)


def test_a_tensor_of_zeros_has_a_dynamic_range(dynamic_quantize: ort.InferenceSession) -> None:
    zeros = torch.zeros(2, 3)
    np.testing.assert_array_equal(DynamicActivationFakeQuantizer()(zeros).numpy(), zeros.numpy())
    np.testing.assert_array_equal(dynamic_quantize.run(None, {"x": zeros.numpy()})[0], zeros.numpy())


@pytest.mark.parametrize("kind", [ActivationFakeQuantizer, DynamicActivationFakeQuantizer])
def test_gradients_pass_straight_through_the_rounding_of_activations(kind: type[nn.Module]) -> None:
    quantizer = kind()
    x = gaussian(50).requires_grad_()
    (quantizer(x) * torch.arange(50.0)).sum().backward()
    torch.testing.assert_close(x.grad, torch.arange(50.0))


def test_calibration_covers_what_it_saw_and_keeps_zero_exact() -> None:
    quantizer = ActivationFakeQuantizer()
    batches = [(torch.rand(64, 32, generator=torch.Generator().manual_seed(n)) * 5 - 1,) for n in range(4)]
    calibrate_(quantizer, batches)
    assert quantizer.observer is None
    span = 255 * float(quantizer.scale)
    assert 5.8 < span < 6.2 or 4.8 < span < 5.2
    assert float(quantizer(torch.zeros(1))) == 0.0
    for (x,) in batches:
        assert float((quantizer(x) - x).abs().max()) <= 0.51 * float(quantizer.scale)


def test_calibration_passes_the_values_on_and_ends_with_the_last_batch(trained: nn.Module, digits: object) -> None:
    images = gaussian(16, 1, 8, 8)
    deployable = folded(trained, images)
    insert_activation_quantizers_(deployable, dict.fromkeys(weight_layers(deployable), Precision.W8A8))
    quantizers = [module for module in deployable.modules() if isinstance(module, ActivationFakeQuantizer)]
    for quantizer in quantizers:
        quantizer.observe_()
    with torch.no_grad():
        torch.testing.assert_close(deployable(images), trained(images), rtol=1e-4, atol=1e-5)
    calibrate_(deployable, [(images,)])
    assert all(float(quantizer.scale) not in (0.0, 1.0) for quantizer in quantizers)
    with torch.no_grad():
        off = (deployable(images) - trained(images)).abs().max() / trained(images).abs().max()
    assert 0.0 < float(off) < 0.1


# What is attached where


def test_layers_get_the_bits_they_are_given() -> None:
    network = trace(tiny_resnet().eval(), (gaussian(2, 1, 8, 8),))
    precisions = {
        "stem": Precision.W8A8,
        "stage1.0.conv1": Precision.W3,
        "reduce": Precision.FLOAT32,
        "linear": Precision.W2A8,
    }
    before = {name: network.get_parameter(layer.weight).detach() for name, layer in weight_layers(network).items()}
    attach_weight_quantizers_(network, precisions)
    found = integer_weights(network)
    assert {name: weight.bits for name, weight in found.items()} == {"stem": 8, "stage1.0.conv1": 3, "linear": 2}
    tensors = deployment_tensors(network)
    assert not any("parametrizations" in name for name in tensors)
    for name, weight in before.items():
        if name in found:
            values, scales = found[name].values, found[name].scales
            assert torch.equal(
                tensors[f"{name}.weight"], values.float() * scales.reshape(-1, *[1] * (weight.dim() - 1))
            )
        else:
            assert torch.equal(tensors[f"{name}.weight"], weight)


def test_a_precision_for_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(KeyError, match="stage9"):
        attach_weight_quantizers_(trace(tiny_resnet().eval(), (gaussian(2, 1, 8, 8),)), {"stage9": Precision.W8})


def test_without_integer_layers_nothing_is_rounded(resnet20: nn.Module) -> None:
    graph = folded(resnet20, gaussian(2, 1, 8, 8))
    insert_activation_quantizers_(graph, dict.fromkeys(weight_layers(graph), Precision.W4))
    kinds = (ActivationFakeQuantizer, DynamicActivationFakeQuantizer)
    assert not any(isinstance(module, kinds) for module in graph.modules())


def test_the_logits_are_not_rounded(resnet20: nn.Module) -> None:
    graph = folded(resnet20, gaussian(2, 1, 8, 8))
    chosen = quantized_tensors(graph, set(weight_layers(graph)))
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    assert not set(output.all_input_nodes) & set(chosen)


def test_there_is_one_grid_for_each_tensor_that_is_computed(resnet20: nn.Module) -> None:
    graph = folded(resnet20, gaussian(2, 1, 8, 8))
    insert_activation_quantizers_(graph, dict.fromkeys(weight_layers(graph), Precision.W8A8))
    grids = [module for module in graph.modules() if isinstance(module, ActivationFakeQuantizer)]
    # image, stem, two convolutions and an addition for each of nine blocks, the classifier's input; a shortcut
    # only moves values, so it shares the grid of what it moves
    assert len(grids) == 1 + 1 + 9 * 3 + 1


# Linear layers on sequences, and tables of embeddings


class Words(nn.Module):
    """Two layers that read one tensor of sequences, of words that a table holds, and a third."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.table(words)
        return self.third(torch.relu(self.first(x) + self.second(x)).mean(dim=1))


WORDS = torch.randint(0, 11, (4, 5), generator=torch.Generator().manual_seed(0))


def test_layers_that_read_one_sequence_share_its_grid_and_give_floats() -> None:
    torch.manual_seed(0)
    graph = folded(Words(), WORDS)
    assert {name: layer.kind for name, layer in weight_layers(graph).items()} == {
        "table": "embedding", "first": "linear", "second": "linear", "third": "linear"
    }  # fmt: skip
    insert_activation_quantizers_(graph, dict.fromkeys(["first", "second"], Precision.W8A8))
    (grid,) = (node for node in graph.graph.nodes if node.op == "call_module")
    readers = {node for node in graph.graph.nodes if node.target is aten.linear.default and grid in node.args}
    assert len(readers) == 2
    # their sum and its ReLU are float, and no grid stands there
    assert all(user.target is aten.add.Tensor for reader in readers for user in reader.users)


@pytest.mark.parametrize("dynamic", [["first", "second", "third"], ["second"]])
def test_each_layer_reads_its_input_as_its_precision_says(dynamic: list[str]) -> None:
    graph = folded(Words(), WORDS)
    precisions = {
        name: Precision.W8A8_DYNAMIC if name in dynamic else Precision.W8A8 for name in ("first", "second", "third")
    }
    insert_activation_quantizers_(graph, precisions)
    kinds = {}
    for node in graph.graph.nodes:
        if node.target is aten.linear.default:
            source = node.args[0]
            assert source.op == "call_module"
            kinds[node.args[1].target] = type(graph.get_submodule(source.target))
    assert kinds == {
        f"{name}.weight": DynamicActivationFakeQuantizer if precision.dynamic else ActivationFakeQuantizer
        for name, precision in precisions.items()
    }
    calibrate_(graph, [(WORDS,)])
    with torch.no_grad():
        assert graph(WORDS[:1, :3]).shape == (1, 3)


def test_a_table_is_rounded_once_and_learns_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = folded(Words(), WORDS)
    table = graph.get_parameter("table.weight").detach().clone()
    attach_weight_quantizers_(graph, {"table": Precision.W4, "first": Precision.W4})
    rounded = []
    on_grid = WeightFakeQuantizer._on_grid
    monkeypatch.setattr(
        WeightFakeQuantizer,
        "_on_grid",
        lambda self, weight, step: rounded.append(tuple(weight.shape)) or on_grid(self, weight, step),
    )
    optimiser = torch.optim.AdamW([p for p in graph.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        graph(WORDS).square().sum().backward()
        optimiser.step()
    assert rounded.count(tuple(table.shape)) <= 1
    assert rounded.count((8, 6)) == 3
    found = integer_weights(graph)
    assert set(found) == {"table", "first"}
    weight = found["table"]
    learned = {name for name, parameter in graph.named_parameters() if parameter.requires_grad}
    assert not any(name.startswith("table.") for name in learned)
    assert any(name.startswith("first.parametrizations") for name in learned)
    # a scale for each row, and the integers of the table as it came
    assert weight.scales.shape == (11,) and weight.layer.kind == "embedding"
    assert torch.equal(weight.values.float() * weight.scales[:, None], deployment_tensors(graph)["table.weight"])
    best = best_steps(table, 4)
    torch.testing.assert_close(weight.scales, best)
    assert torch.equal(weight.values.float(), (table / best[:, None]).clamp(-8, 7).round())


# The kernels ONNX Runtime picks


def fused_operators(network: nn.Module, bench: Bench, precisions: dict[str, Precision], path: Path) -> dict[str, int]:
    plan = Plan(quantization=QuantizationSpec(precisions=precisions))
    draft(replace(bench, base=network), network, plan, path, StageClock())
    return count_fused(path)


def layer_kinds(network: nn.Module) -> dict[str, str]:
    return {name: layer.kind for name, layer in weight_layers(trace(network, (gaussian(2, 1, 8, 8),))).items()}


def test_every_integer_layer_of_resnet20_is_fused(resnet20: nn.Module, bench: Bench, tmp_path: Path) -> None:
    kinds = layer_kinds(resnet20)
    operators = fused_operators(resnet20, bench, dict.fromkeys(kinds, Precision.W8A8), tmp_path / "model.onnx")
    assert operators["QLinearConv"] == list(kinds.values()).count("convolution") == 19
    assert operators["QLinearAdd"] == 9
    assert operators["QGemm"] == 1
    assert not operators.keys() & {"Conv", "FusedConv", "Gemm", "Add", "Relu"}


@pytest.mark.parametrize("seed", range(2))
def test_mixed_precisions_fuse_exactly_the_integer_layers(
    seed: int, trained: nn.Module, bench: Bench, tmp_path: Path
) -> None:
    kinds = layer_kinds(trained)
    options = [Precision.FLOAT32, Precision.W4, Precision.W8A8, Precision.W3A8]
    precisions = {name: random.Random(f"{seed}{name}").choice(options) for name in kinds}
    operators = fused_operators(trained, bench, precisions, tmp_path / "model.onnx")
    integer = [kinds[name] for name, precision in precisions.items() if precision.integer_activations]
    assert operators.get("QLinearConv", 0) == integer.count("convolution")
    assert operators.get("QGemm", 0) == integer.count("linear")
    kept = operators.get("Conv", 0) + operators.get("FusedConv", 0) + operators.get("Gemm", 0)
    assert kept == len(kinds) - len(integer)
