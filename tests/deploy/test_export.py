"""The exported graph shows the structure alone: which values a network has must not show in it."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from graphs import folded
from networks import tiny_resnet
from onnx import numpy_helper
from torch import Tensor, nn

from autocompress.compression.quantization import (
    ActivationFakeQuantizer,
    deployment_tensors,
    insert_activation_quantizers_,
)
from autocompress.deploy.encoding import encode_weights
from autocompress.deploy.export import export_graph, initializer_names
from autocompress.errors import TrialFailed
from autocompress.layers import Axes, weight_layers
from autocompress.plan import Precision

IMAGES = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def deployable(
    network: nn.Module,
    precision: Precision = Precision.FLOAT32,
    inputs: tuple[Tensor, ...] = (IMAGES,),
    axes: Axes = (),
) -> torch.fx.GraphModule:
    graph = folded(network, *inputs, axes=axes)
    insert_activation_quantizers_(graph, dict.fromkeys(weight_layers(graph), precision))
    return graph


def export(network: torch.fx.GraphModule, inputs: tuple[Tensor, ...] = (IMAGES,), axes: Axes = ()) -> onnx.ModelProto:
    return export_graph(network, inputs, tuple(f"input{n}" for n in range(len(inputs))), axes)


def filled(graph: onnx.ModelProto, network: torch.fx.GraphModule) -> onnx.ModelProto:
    """The graph with the network's values."""
    names = initializer_names(graph)
    tensors = {name: value.numpy() for name, value in deployment_tensors(network).items() if name in names}
    return encode_weights(graph, {}, tensors)


def run(model: onnx.ModelProto, *inputs: Tensor) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["logits"], {f"input{n}": x.numpy() for n, x in enumerate(inputs)})[0]


def structure(
    model: onnx.ModelProto,
) -> tuple[list[tuple[str, list[str], list[str]]], dict[str, tuple[int, ...]]]:
    """Nodes with what they read and write, and shapes of what is stored."""
    nodes = [(node.op_type, list(node.input), list(node.output)) for node in model.graph.node]
    return nodes, {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}


@pytest.fixture(scope="module")
def graph(trained: nn.Module) -> onnx.ModelProto:
    return export(deployable(trained, Precision.W8A8))


# Structure and values


def test_the_structure_does_not_depend_on_the_values(trained: nn.Module, graph: onnx.ModelProto) -> None:
    degenerate = copy.deepcopy(trained)
    with torch.no_grad():
        for tensor in degenerate.state_dict().values():
            tensor.fill_(0.0 if tensor.is_floating_point() else 0)  # zero biases, equal weights
    quantised = deployable(degenerate, Precision.W8A8)
    for module in quantised.modules():
        if isinstance(module, ActivationFakeQuantizer):
            module.scale.fill_(0.25)  # equal grids
            module.zero_point.fill_(0)
    assert structure(export(quantised)) == structure(graph)


def test_every_quantiser_has_its_own_grid(trained: nn.Module, graph: onnx.ModelProto) -> None:
    quantised = deployable(trained, Precision.W8A8)
    grids = [name for name, module in quantised.named_modules() if isinstance(module, ActivationFakeQuantizer)]
    pairs = {tuple(node.input[1:]) for node in graph.graph.node if node.op_type.endswith("QuantizeLinear")}
    assert pairs == {(f"{name}.scale", f"{name}.zero_point") for name in grids}


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.W8A8])
def test_stored_tensors_have_the_names_of_the_deployed_ones(trained: nn.Module, precision: Precision) -> None:
    network = deployable(trained, precision)
    exported = export(network)
    tensors = deployment_tensors(network)
    assert tensors.keys() <= initializer_names(exported)
    for tensor in exported.graph.initializer:
        if tensor.name in tensors:
            assert tuple(tensor.dims) == tuple(tensors[tensor.name].shape)
        else:
            # what the exporter adds are shapes and axes, never a value that training changes
            assert tensor.data_type == onnx.TensorProto.INT64


def test_equal_parameters_are_stored_apart_and_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    network = tiny_resnet()
    with torch.no_grad():
        for block in (network.stage1[0], network.stage1[1]):
            nn.init.constant_(block.conv1.weight, 0.5)
    exported = export(deployable(network))
    assert {"stage1.0.conv1.weight", "stage1.1.conv1.weight"} <= initializer_names(exported)
    assert capfd.readouterr() == ("", "")


def test_exporting_leaves_the_network_alone(trained: nn.Module) -> None:
    network = deployable(trained, Precision.W8A8)
    before, code = copy.deepcopy(network.state_dict()), network.code
    export(network)
    assert network.code == code
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_nothing_constant_is_computed_when_the_file_runs(trained: nn.Module) -> None:
    """What depends on constants alone is folded, trained tensors excepted: they are not known yet."""
    network = deployable(trained)
    exported = filled(export(network), network)
    known = {tensor.name for tensor in exported.graph.initializer}
    assert not any(node.op_type in ("Constant", "Identity") for node in exported.graph.node)
    assert not any(set(node.input) <= known for node in exported.graph.node if node.input)


# The graph computes what the network does


@pytest.mark.parametrize("precision", [Precision.FLOAT32, Precision.W8A8])
def test_any_batch_size_runs_and_agrees_with_torch(trained: nn.Module, precision: Precision) -> None:
    network = deployable(trained, precision)
    for module in network.modules():
        if isinstance(module, ActivationFakeQuantizer):
            module.scale.fill_(0.05)
            module.zero_point.fill_(100)
    model = filled(export(network), network)
    # a rounding that falls the other way moves a logit by a fraction of a step
    tolerance = 1e-5 if precision is Precision.FLOAT32 else 0.03
    for batch in (1, 2, 5):
        with torch.no_grad():
            expected = network(IMAGES[:batch]).numpy()
        assert np.abs(run(model, IMAGES[:batch]) - expected).max() <= tolerance * np.abs(expected).max()


class PreActivation(nn.Module):
    """Norms before the convolutions, which cannot be folded, and equal ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(1), nn.Conv2d(1, 4, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        self.norm3, self.linear = nn.BatchNorm2d(4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(torch.relu(self.norm1(x)))
        x = x + self.conv2(torch.relu(self.norm2(x)))
        return self.linear(torch.relu(self.norm3(x)).mean(dim=(2, 3)))


def test_norms_that_are_equal_before_training_may_differ_after_it() -> None:
    network = deployable(PreActivation())
    exported = export(network)
    generator = torch.Generator().manual_seed(1)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.1)
    with torch.no_grad():
        np.testing.assert_allclose(
            run(filled(exported, network), IMAGES), network(IMAGES).numpy(), rtol=1e-4, atol=1e-5
        )


class TwoInputs(nn.Module):
    """Nothing here is an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(7, 4), nn.Linear(6, 3)

    def forward(self, tokens: Tensor, numbers: Tensor) -> Tensor:
        return self.linear(torch.cat([self.embedding(tokens).mean(dim=1), numbers], dim=1))


def test_networks_of_several_inputs_keep_their_order_and_types() -> None:
    tokens, numbers = torch.tensor([[1, 2, 6], [0, 0, 3], [5, 4, 1]]), torch.randn(3, 2)
    network = deployable(TwoInputs(), inputs=(tokens, numbers))
    exported = export(network, (tokens, numbers))
    assert [value.name for value in exported.graph.input] == ["input0", "input1"]
    assert [value.type.tensor_type.elem_type for value in exported.graph.input] == [7, 1]
    with torch.no_grad():
        np.testing.assert_allclose(
            run(filled(exported, network), tokens, numbers), network(tokens, numbers), rtol=1e-5, atol=1e-6
        )


class Tied(nn.Module):
    """One matrix is a table of embeddings and the classifier, and one layer is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.middle = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.middle(torch.relu(self.middle(self.table(tokens)))))


TOKENS = torch.tensor([[1, 2, 6], [0, 0, 3], [5, 4, 1]])
LENGTH: Axes = ({1: "length"},)


def test_a_weight_that_several_layers_read_is_stored_once() -> None:
    network = deployable(Tied(), inputs=(TOKENS,), axes=LENGTH)
    assert weight_layers(network) == {}
    model = filled(export(network, (TOKENS,), LENGTH), network)
    assert sum(tuple(tensor.dims) == (7, 4) for tensor in model.graph.initializer) == 1
    for tokens in (TOKENS, TOKENS[:1, :2], TOKENS.repeat(2, 3)):
        with torch.no_grad():
            np.testing.assert_allclose(run(model, tokens), network(tokens).numpy(), rtol=1e-4, atol=1e-6)


class Attends(nn.Module):
    """PyTorch's own attention, over words."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(7, 8), nn.LayerNorm(8)
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(self.table(tokens))).view(*tokens.shape, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.head(mixed.transpose(1, 2).flatten(2).mean(dim=1))


def test_attention_is_one_operator_and_takes_any_length() -> None:
    network = deployable(Attends(), inputs=(TOKENS,), axes=LENGTH)
    model = filled(export(network, (TOKENS,), LENGTH), network)
    assert [node.op_type for node in model.graph.node].count("Attention") == 1
    assert not any(node.op_type == "Softmax" for node in model.graph.node)
    (words,) = model.graph.input
    assert [dimension.dim_param for dimension in words.type.tensor_type.shape.dim] == ["batch", "length"]
    for tokens in (TOKENS, TOKENS[:1, :2], TOKENS.repeat(2, 3)):
        with torch.no_grad():
            np.testing.assert_allclose(run(model, tokens), network(tokens).numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "inputs"), [(PreActivation, (IMAGES,)), (Attends, (TOKENS,)), (Tied, (TOKENS,)), (tiny_resnet, (IMAGES,))]
)
def test_parameters_that_are_all_zero_or_one_are_stored_all_the_same(
    kind: type[nn.Module], inputs: tuple[Tensor, ...], value: float
) -> None:
    """New norms and biases are; training changes them, and they must have a place in the file."""
    network = deployable(kind(), inputs=inputs)
    plain = structure(export(network, inputs))
    for parameter in network.parameters():
        nn.init.constant_(parameter, value)
    assert structure(export(network, inputs)) == plain
    assert {name for name, _ in network.named_parameters(remove_duplicate=True)} <= plain[1].keys()


# Failures


class Unexportable(nn.Module):
    """Uses what ONNX has no operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.special.bessel_j0(x).mean(dim=1))


def test_a_network_that_cannot_be_exported_fails_the_trial(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(TrialFailed, match="exportable to ONNX") as failure:
        export(deployable(Unexportable(), inputs=(IMAGES[:, 0],)), (IMAGES[:, 0],))
    assert failure.value.kind == "export"
    assert "\n" not in str(failure.value)
    assert capfd.readouterr().out == ""


def test_initializer_names_are_those_of_the_graph(graph: onnx.ModelProto) -> None:
    assert initializer_names(graph) == {tensor.name for tensor in graph.graph.initializer}
    assert all(numpy_helper.to_array(tensor).size for tensor in graph.graph.initializer)
