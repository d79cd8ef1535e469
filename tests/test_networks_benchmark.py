"""The networks of the benchmarks: each answers differently to different inputs, and again the same."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from autocompress.adapter import check_fit
from autocompress.layers import trace
from autocompress.weights import check_finite, weights_digest

FILE = Path(__file__).parents[1] / "benchmarks" / "networks.py"
FAST = ("mlp", "audio", "lstm", "bert", "mobilenet_v3_small")
NEEDS = {"bert": "transformers", "distilbert": "transformers", "gpt2": "transformers"}


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_networks", FILE)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


networks = _load()
NAMES = [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in networks.NETWORKS]


def _need(name: str) -> None:
    package = NEEDS.get(name, "timm" if name in networks.TIMM else "torch")
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs {package}")


@pytest.mark.parametrize("name", NAMES)
def test_logits_vary_over_inputs_as_a_trained_network_s_do(name: str) -> None:
    _need(name)
    model, data = networks.prepared(name)
    check_fit(model, data)
    check_finite(model, name)
    logits = networks.outputs(model, data.model_inputs(data.validation, torch.arange(64)))
    classes, spread = networks.variation(logits)
    assert classes >= 3
    assert spread > 0.1
    assert torch.equal(logits.argmax(1), data.validation.labels[:64])
    assert 0.1 < float(logits.std(0).mean()) < 10


@pytest.mark.parametrize("name", NAMES)
def test_every_network_can_be_traced_for_any_batch(name: str) -> None:
    _need(name)
    torch.manual_seed(0)
    network = networks.NETWORKS[name]()
    model = networks.adapt(network.model.eval(), network.input_names, network.by_name, network.example)
    traced = trace(model, network.example)
    five = tuple(torch.cat([x, x, x[:1]]) for x in network.example)
    with torch.no_grad():
        expected = model(*five)
        assert torch.allclose(traced(*five), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["mlp", "lstm"])
def test_the_same_seed_gives_the_same_network_and_data(name: str) -> None:
    state = torch.get_rng_state()
    (first, data), (second, again), (other, _) = (networks.prepared(name, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert weights_digest(first) == weights_digest(second) != weights_digest(other)
    assert torch.equal(data.train.inputs[0], again.train.inputs[0])
    assert (len(data.train), len(data.calibration), len(data.validation), len(data.test)) == (256, 128, 128, 128)


def test_texts_differ_in_length_and_their_masks_say_how_long_they_are() -> None:
    _need("bert")
    example = networks.NETWORKS["bert"]().example
    tokens, mask = networks.random_inputs(example, networks.random_classes(64, 0), seed=0)
    assert torch.equal(tokens > 0, mask.bool())
    lengths = mask.sum(1)
    assert (int(lengths.min()), int(lengths.max())) == (networks.SHORTEST, networks.LONGEST)
    assert torch.equal(mask, mask.sort(1, descending=True).values)


def test_what_begins_at_zero_is_drawn_and_what_is_small_is_made_to_matter() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
            self.scale, self.position = nn.Parameter(torch.full((8,), 1e-6)), nn.Parameter(torch.zeros(1, 8))
            nn.init.zeros_(self.norm.weight)

    block = Block()
    networks.spread_(block, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(block.scale.min()) > 0.1
        assert float(block.position.std()) > 0.1
        assert float(block.norm.weight.min()) > 0.1
        assert 0.5 < float(block.linear(torch.randn(500, 8)).std()) < 2
