"""Grids, their gradients and their places are those of the papers, of ONNX and of ONNX Runtime's kernels."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import tiny_resnet
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

from autocompress.compression.quantization import (
    ActivationFakeQuantizer,
    WeightFakeQuantizer,
    attach_weight_quantizers_,
    best_steps,
    calibrate_,
    deployment_tensors,
    fold_batch_norm,
    insert_activation_quantizers_,
    integer_weights,
    quantized_tensors,
    weight_range,
)
from autocompress.deploy.encoding import count_fused
from autocompress.layers import weight_layers
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
    folded = fold_batch_norm(resnet20)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert weight_layers(folded).keys() == weight_layers(resnet20).keys()
    images = gaussian(4, 1, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), resnet20(images), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in resnet20.state_dict().items())


def test_a_norm_that_follows_no_convolution_stays() -> None:
    network = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    network[0].running_mean.fill_(0.5)
    folded = fold_batch_norm(network)
    assert [type(module) for module in folded.children()].count(nn.BatchNorm2d) == 1
    images = gaussian(2, 3, 4, 4)
    with torch.no_grad():
        torch.testing.assert_close(folded(images), network(images))


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


def test_gradients_pass_straight_through_the_rounding_of_activations() -> None:
    quantizer = ActivationFakeQuantizer()
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
    deployable = fold_batch_norm(trained)
    precisions = dict.fromkeys(weight_layers(trained), Precision.W8A8)
    insert_activation_quantizers_(deployable, precisions)
    images = gaussian(16, 1, 8, 8)
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
    network = tiny_resnet().eval()
    precisions = {
        "stem": Precision.W8A8,
        "stage1.0.conv1": Precision.W3,
        "reduce": Precision.FLOAT32,
        "linear": Precision.W2A8,
    }
    before = {name: layer.weight.detach().clone() for name, layer in weight_layers(network).items()}
    attach_weight_quantizers_(network, precisions)
    found = integer_weights(network)
    assert {name: bits for name, (_, _, bits) in found.items()} == {"stem": 8, "stage1.0.conv1": 3, "linear": 2}
    tensors = deployment_tensors(network)
    assert not any("parametrizations" in name for name in tensors)
    for name, weight in before.items():
        if name in found:
            values, scales, _ = found[name]
            assert torch.equal(
                tensors[f"{name}.weight"], values.float() * scales.reshape(-1, *[1] * (weight.dim() - 1))
            )
        else:
            assert torch.equal(tensors[f"{name}.weight"], weight)


def test_a_precision_for_an_unknown_layer_is_an_error() -> None:
    with pytest.raises(KeyError, match="stage9"):
        attach_weight_quantizers_(tiny_resnet(), {"stage9": Precision.W8})


def test_without_integer_layers_nothing_is_rounded(resnet20: nn.Module) -> None:
    folded = fold_batch_norm(resnet20)
    insert_activation_quantizers_(folded, dict.fromkeys(weight_layers(folded), Precision.W4))
    assert not any(isinstance(module, ActivationFakeQuantizer) for module in folded.modules())


def test_the_logits_are_not_rounded(resnet20: nn.Module) -> None:
    folded = fold_batch_norm(resnet20)
    chosen = quantized_tensors(folded, set(weight_layers(folded)))
    (output,) = (node for node in folded.graph.nodes if node.op == "output")
    assert not set(output.all_input_nodes) & set(chosen)


def test_there_is_one_grid_for_each_tensor_that_is_computed(resnet20: nn.Module) -> None:
    folded = fold_batch_norm(resnet20)
    insert_activation_quantizers_(folded, dict.fromkeys(weight_layers(folded), Precision.W8A8))
    grids = [module for module in folded.modules() if isinstance(module, ActivationFakeQuantizer)]
    # image, stem, two convolutions and an addition for each of nine blocks, the classifier's input; a shortcut
    # only moves values, so it shares the grid of what it moves
    assert len(grids) == 1 + 1 + 9 * 3 + 1


# The kernels ONNX Runtime picks


def fused_operators(network: nn.Module, bench: Bench, precisions: dict[str, Precision], path: Path) -> dict[str, int]:
    plan = Plan(quantization=QuantizationSpec(precisions=precisions))
    draft(replace(bench, base=network), network, plan, path, StageClock())
    return count_fused(path)


def test_every_integer_layer_of_resnet20_is_fused(resnet20: nn.Module, bench: Bench, tmp_path: Path) -> None:
    layers = weight_layers(resnet20)
    operators = fused_operators(resnet20, bench, dict.fromkeys(layers, Precision.W8A8), tmp_path / "model.onnx")
    assert operators["QLinearConv"] == sum(isinstance(layer, nn.Conv2d) for layer in layers.values()) == 19
    assert operators["QLinearAdd"] == 9
    assert operators["QGemm"] == 1
    assert not operators.keys() & {"Conv", "FusedConv", "Gemm", "Add", "Relu"}


@pytest.mark.parametrize("seed", range(2))
def test_mixed_precisions_fuse_exactly_the_integer_layers(
    seed: int, trained: nn.Module, bench: Bench, tmp_path: Path
) -> None:
    layers = weight_layers(trained)
    options = [Precision.FLOAT32, Precision.W4, Precision.W8A8, Precision.W3A8]
    precisions = {name: random.Random(f"{seed}{name}").choice(options) for name in layers}
    operators = fused_operators(trained, bench, precisions, tmp_path / "model.onnx")
    integer = [layers[name] for name, precision in precisions.items() if precision.integer_activations]
    assert operators.get("QLinearConv", 0) == sum(isinstance(layer, nn.Conv2d) for layer in integer)
    assert operators.get("QGemm", 0) == sum(isinstance(layer, nn.Linear) for layer in integer)
    kept = operators.get("Conv", 0) + operators.get("FusedConv", 0) + operators.get("Gemm", 0)
    assert kept == len(layers) - len(integer)
