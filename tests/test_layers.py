"""A traced network is the network: same names, same answers, any batch size and length."""

from __future__ import annotations

import copy
import inspect
import logging
import warnings
from pathlib import Path

import pytest
import torch
from networks import tiny_resnet
from token_task import bert_config
from torch import Tensor, nn

from autocompress.errors import ModelError
from autocompress.layers import (
    aten,
    classifier_name,
    layer_of,
    matrices,
    quiet,
    trace,
    weight_layers,
)
from autocompress.torchvision_compat import import_torchvision


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    import_torchvision()  # transformers imports it
    torch.manual_seed(0)
    settings = {key: value for key, value in bert_config(19).items() if key not in ("architectures", "model_type")}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(**settings))

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            return self.model(input_ids=input_ids, attention_mask=attention_mask).logits

    return Logits().eval()


def words(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Tokens, and a mask that ends earlier in each row."""
    generator = torch.Generator().manual_seed(rows)
    lengths = torch.arange(rows) % length + 1
    return torch.randint(1, 19, (rows, length), generator=generator), (torch.arange(length) < lengths[:, None]).long()


# What a trace keeps


def test_parameters_keep_their_names_and_values() -> None:
    network = tiny_resnet().eval()
    traced = trace(network, (torch.randn(2, 1, 8, 8),))
    assert dict(traced.named_parameters()).keys() == dict(network.named_parameters()).keys()
    # counts of batches are read by nothing that is traced in evaluation
    state = {name: value for name, value in network.state_dict().items() if "num_batches" not in name}
    assert all(torch.equal(traced.state_dict()[name], value) for name, value in state.items())


def test_a_bert_keeps_its_names_and_takes_any_batch_size_and_length() -> None:
    network = bert()
    before = copy.deepcopy(network.state_dict())
    traced = trace(network, words(2, 6), ({1: "length"}, {1: "length"}))
    assert dict(traced.named_parameters()).keys() == dict(network.named_parameters()).keys()
    for rows, length in ((1, 6), (2, 6), (7, 32), (5, 2)):
        inputs = words(rows, length)
        with torch.no_grad():
            torch.testing.assert_close(traced(*inputs), network(*inputs), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    kinds = {name: layer.kind for name, layer in weight_layers(traced).items()}
    assert list(kinds.values()).count("embedding") == 3  # words, positions, kinds
    assert list(kinds.values()).count("linear") == 2 * 6 + 2
    assert set(kinds) == {name.removesuffix(".weight") for name in matrices(network)}


@pytest.mark.parametrize("rows", [2, 3])
def test_a_trace_takes_one_row_and_many(rows: int) -> None:
    network = tiny_resnet().eval()
    traced = trace(network, (torch.randn(rows, 1, 8, 8),))
    for batch in (1, 2, 50):
        images = torch.randn(batch, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(traced(images), network(images))


def test_a_graph_may_be_set_to_train_and_stays_in_evaluation_where_that_matters() -> None:
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.drop = nn.Linear(4, 4), nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.drop(self.layer(x))

    network, x = Dropping().eval(), torch.randn(3, 4)
    traced = trace(network, (x,))
    with torch.no_grad():
        torch.testing.assert_close(traced.train()(x), network(x))


def test_inputs_of_a_variadic_forward_are_traced() -> None:
    class Variadic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 2)

        def forward(self, *inputs: Tensor) -> Tensor:
            return self.layer(inputs[0] + inputs[1])

    network, x, y = Variadic().eval(), torch.randn(3, 5, 4), torch.randn(3, 5, 4)
    traced = trace(network, (x, y), ({1: "length"}, {1: "length"}))
    with torch.no_grad():
        torch.testing.assert_close(traced(x[:1, :2], y[:1, :2]), network(x[:1, :2], y[:1, :2]))


def test_tracing_says_nothing(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace(tiny_resnet().eval(), (torch.randn(2, 1, 8, 8),))
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_quiet_ends_where_it_ends(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match="inside"), quiet():
        logging.getLogger("torch").warning("unheard")
        print("unheard")
        raise ValueError("inside")
    logging.getLogger("torch").warning("heard")
    print("heard")
    assert "unheard" not in caplog.text + capsys.readouterr().out
    assert "heard" in caplog.text


# Writing in place


class Activated(nn.Module):
    """Activations and sums that overwrite what they read, which is read again."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(4, 4) for _ in range(3))
        self.relu, self.silu = nn.ReLU(inplace=True), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.relu(y)
        y += self.second(x)  # z is y
        y.mul_(2.0)
        self.silu(z)
        return self.third(y) + z


def test_what_is_done_in_place_is_done_out_of_place() -> None:
    network, x = Activated().eval(), torch.randn(5, 4)
    traced = trace(network, (x,))
    called = {str(node.target) for node in traced.graph.nodes if node.op == "call_function"}
    assert not any(name.partition(".")[2].partition(".")[0].endswith("_") for name in called)
    assert any("relu" in name for name in called)
    given = x.clone()
    with torch.no_grad():
        torch.testing.assert_close(traced(given), network(x.clone()))
    assert torch.equal(given, x)


class IntoSlices(nn.Module):
    """A tensor that is filled piece by piece, and pieces of which are changed (Swin does both)."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        z = torch.zeros_like(y)
        z[:, :3] = y[:, 3:]
        z[:, 3:].copy_(y[:, :3])
        z[:, 1:4].add_(1.0)
        z[:, ::2].relu_()
        return self.out(z) + y.sum(dim=1, keepdim=True)


def test_writing_into_a_slice_stays_right() -> None:
    network = IntoSlices().eval()
    traced = trace(network, (torch.randn(3, 4),))
    for rows in (1, 6):
        x = torch.randn(rows, 4)
        with torch.no_grad():
            torch.testing.assert_close(traced(x), network(x))


# Layers


class Kinds(nn.Module):
    """Each kind of layer, a bare parameter, and a weight that is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding="same", bias=False)
        self.linear = nn.Linear(8, 6)
        self.matrix = nn.Parameter(torch.randn(6, 5))
        self.shift = nn.Parameter(torch.randn(5))
        self.shared = nn.Linear(5, 5)
        self.recurrent = nn.GRU(5, 5, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.conv(self.words(tokens).transpose(1, 2)).transpose(1, 2)
        x = self.linear(x)
        x = torch.addmm(self.shift, x.reshape(-1, 6), self.matrix).reshape(*tokens.shape, 5)
        return self.shared(self.shared(x)).mean(dim=1)


def test_layers_are_known_by_their_operators() -> None:
    traced = trace(Kinds().eval(), (torch.randint(0, 7, (2, 4)),), ({1: "length"},))
    layers = weight_layers(traced)
    assert [(layer.name, layer.kind, layer.bias, layer.out_axis, layer.inner_axes) for layer in layers.values()] == [
        ("words", "embedding", None, 0, 0),
        ("conv", "convolution", None, 0, 0),
        ("linear", "linear", "linear.bias", 0, 1),
        ("matrix", "linear", "shift", 1, 0),
    ]
    assert layers["matrix"].weight == "matrix" and layers["words"].weight == "words.weight"
    # what two nodes read is a layer of neither
    assert sum(layer_of(node) is not None and layer_of(node).name == "shared" for node in traced.graph.nodes) == 2


def test_matrices_and_the_classifier_are_known_without_a_trace() -> None:
    network = Kinds()
    assert {name for name in matrices(network) if "recurrent" not in name} == {
        "words.weight", "conv.weight", "linear.weight", "matrix", "shared.weight"
    }  # fmt: skip
    assert classifier_name(network) == "shared"
    assert classifier_name(nn.Conv1d(1, 1, 1)) is None


def test_convolutions_are_convolutions_whoever_calls_them() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(4, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.kernel, padding="same")

    (layer,) = weight_layers(trace(Functional().eval(), (torch.randn(2, 1, 5, 5),))).values()
    assert (layer.name, layer.weight, layer.kind) == ("kernel", "kernel", "convolution")


# What cannot be traced


class Decides(nn.Module):
    """Takes another path where the values are large."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:  # the line to be named
            x = -x
        return self.layer(x)


def line_of(marker: str, kind: type) -> int:
    lines, start = inspect.getsourcelines(kind)
    return start + next(number for number, line in enumerate(lines) if marker in line)


@pytest.mark.parametrize("wrapped", [False, True])
def test_control_flow_by_values_is_refused_with_its_line(wrapped: bool) -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Decides())) if wrapped else Decides()
    with pytest.raises(ModelError) as refusal:
        trace(network.eval(), (torch.randn(3, 4),))
    message = str(refusal.value)
    assert f"{Path(__file__)} line {line_of('the line to be named', Decides)} (if x.mean() > 0" in message
    assert "torch.export" in message and "\n" not in message
    assert message.count(";") >= 2  # the rule, the values, the next step


class Counts(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x.sum()] * int(x[0, 0].item()))  # a count from a value


class FixedBatch(nn.Module):
    """Works for two rows alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view(2, -1)


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("first line\nsecond line")  # raised here


@pytest.mark.parametrize(("network", "marker"), [(Counts, "a count from a value"), (Raises, "raised here")])
def test_whatever_stops_a_trace_is_one_line_that_names_the_source(network: type[nn.Module], marker: str) -> None:
    with pytest.raises(ModelError) as refusal:
        trace(network(), (torch.full((2, 4), 3.0),))
    assert f"line {line_of(marker, network)}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_network_for_one_batch_size_is_refused() -> None:
    with pytest.raises(ModelError) as refusal:
        trace(FixedBatch(), (torch.randn(2, 4),))
    assert "FixedBatch" in str(refusal.value) and "\n" not in str(refusal.value)


def test_nothing_of_a_failed_trace_stays() -> None:
    network = Decides().eval()
    with pytest.raises(ModelError):
        trace(network, (torch.randn(3, 4),))
    assert not network.training
    assert network(torch.randn(1, 4)).requires_grad
    assert aten.linear.default is torch.ops.aten.linear.default
