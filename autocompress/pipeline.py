"""Plan -> file: the only place that knows the order of the stages.

    build -> prune -> fold, place quantisers -> export the structure      (draft: bytes and latency)
          -> train with distillation -> fold, calibrate, train quantised -> encode   (finish: accuracy)

The graph is exported once, before training: bytes and latency depend on the plan alone, and the trained
tensors fit the same graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import torch
import torch.fx
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.candidate import Parity
from autocompress.compression.architecture import drop_blocks, inherit_weights_
from autocompress.compression.distillation import Acceleration, Schedule, Teacher, train_
from autocompress.compression.pruning import prune
from autocompress.compression.quantization import (
    attach_weight_quantizers_,
    calibrate_,
    deployment_tensors,
    fold_batch_norm,
    insert_activation_quantizers_,
    integer_weights,
    with_rounded_biases,
)
from autocompress.config import TrainingSection
from autocompress.data.task import Split, TaskData
from autocompress.deploy.encoding import LayerWeights, encode_weights, strip
from autocompress.deploy.export import export_graph, initializer_names, with_random_values
from autocompress.deploy.measure import Batch, check_parity, hits
from autocompress.layers import weight_layers
from autocompress.models import ModelSpace, freeze
from autocompress.plan import Plan, Precision
from autocompress.stage_clock import StageClock

EVALUATION_BATCH = 100
CALIBRATION_BATCH = 64
PARITY_EXAMPLES = 500
QUANTIZED_RATE = 0.15
"""Learning rate of the quantised phase, as a share of the float phase's: the network is nearly done."""

Guard = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class Bench:
    """What all candidates of a study share."""

    base: nn.Module
    data: TaskData
    training: TrainingSection
    channel_multiple: int
    space: ModelSpace | None = None
    teacher: Teacher | None = None
    acceleration: Acceleration = field(default_factory=Acceleration)
    each_batch: Guard = nullcontext
    threads: int = 1


@dataclass(frozen=True)
class Draft:
    """A candidate whose structure is final and whose weights are not trained yet."""

    network: nn.Module
    graph: onnx.ModelProto


def build_network(bench: Bench, plan: Plan) -> nn.Module:
    """The network of a plan with inherited weights, before any training.

    Raises:
        KeyError, AttributeError: the plan names layers or blocks that the network does not have.
    """
    torch.manual_seed(plan.seed)
    architecture = plan.architecture
    if architecture.family == "base":
        network = drop_blocks(bench.base, architecture.dropped_blocks)
    else:
        network, _ = freeze(bench.space, lambda label, _options: architecture.choices[label])
        inherit_weights_(network, bench.base)
    network.eval()
    return prune(network, bench.data.example_inputs(2), plan.pruning.ratios, bench.channel_multiple)


def least_size_bytes(network: nn.Module, plan: Plan) -> int:
    """Bytes of the packed weights alone, which no file of this plan can fall below."""
    bits = 0
    for name, layer in weight_layers(network).items():
        precision = plan.quantization.precisions.get(name, Precision.FLOAT32)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        bits += weight.numel() * (precision.weight_bits or 32)
    return bits // 8


def draft(bench: Bench, network: nn.Module, plan: Plan, path: Path, clock: StageClock) -> Draft:
    """Write the untrained file of a network, which has the final bytes and latency.

    Args:
        network: what :func:`build_network` made of the plan.

    Raises:
        TrialFailed: the network cannot be exported or encoded.
    """
    with clock.stage("export"):
        structure = with_random_values(_deployable(network, plan))
        graph = export_graph(structure, bench.data.example_inputs(2), bench.data.input_names)
        attach_weight_quantizers_(structure, plan.quantization.precisions)
        write_file(graph, structure, plan, path)
    return Draft(network, graph)


def finish(
    bench: Bench, draft: Draft, plan: Plan, path: Path, checkpoint: Path, clock: StageClock
) -> torch.fx.GraphModule:
    """Train the draft, write the float weights to ``checkpoint`` and the final file to ``path``.

    Returns:
        The network that simulates the file in torch.

    Raises:
        TrialFailed: the loss diverges, or the trained tensors do not fit the graph.
    """
    quantized = any(p.weight_bits for p in plan.quantization.precisions.values())
    quantized_steps = round(plan.training.steps * bench.training.quantized_fraction) if quantized else 0
    with clock.stage("train"):
        _train(bench, draft.network, plan, plan.training.steps - quantized_steps, 1.0)
        save_file(float_state(draft.network), checkpoint)
    deployable = _deployable(draft.network, plan)
    attach_weight_quantizers_(deployable, plan.quantization.precisions)
    with clock.stage("calibrate"):
        calibrate_(deployable, _calibration_batches(bench))
    with clock.stage("train"):
        _train(bench, deployable, plan, quantized_steps, QUANTIZED_RATE)
    with clock.stage("export"):
        deployable.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        write_file(draft.graph, deployable, plan, path)
    return deployable


def float_state(network: nn.Module) -> dict[str, Tensor]:
    """The state that a continued training starts from."""
    return {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}


def _deployable(network: nn.Module, plan: Plan) -> torch.fx.GraphModule:
    deployable = fold_batch_norm(network)
    insert_activation_quantizers_(deployable, plan.quantization.precisions)
    return deployable


def _train(bench: Bench, network: nn.Module, plan: Plan, steps: int, rate: float) -> None:
    settings = bench.training
    inherits = plan.architecture.family == "base"
    full_rate = settings.learning_rate if inherits else settings.random_start_learning_rate
    schedule = Schedule(
        steps=steps,
        learning_rate=full_rate * rate,
        batch_size=settings.batch_size,
        weight_decay=settings.weight_decay,
        seed=plan.seed,
        acceleration=bench.acceleration,
        each_batch=bench.each_batch,
    )
    train_(network, bench.data, bench.teacher, plan.distillation, schedule, settings.views)


def _calibration_batches(bench: Bench) -> Iterator[tuple[Tensor, ...]]:
    for inputs, _ in bench.data.batches(bench.data.calibration, CALIBRATION_BATCH):
        with bench.each_batch():
            yield inputs


def write_file(graph: onnx.ModelProto, deployable: nn.Module, plan: Plan, path: Path) -> None:
    """Encode the network's tensors into its graph and write the file, atomically."""
    layers = {
        name: LayerWeights(values.numpy(), scales.numpy(), bits, plan.quantization.precisions[name].integer_activations)
        for name, (values, scales, bits) in integer_weights(deployable).items()
    }
    stored = initializer_names(graph)
    tensors = {
        name: value.detach().contiguous().numpy()
        for name, value in deployment_tensors(deployable).items()
        if name in stored
    }
    temporary = path.with_suffix(".partial")
    temporary.write_bytes(strip(encode_weights(graph, layers, tensors)).SerializeToString())
    temporary.replace(path)


def split_hits(bench: Bench, path: Path, split: Split) -> NDArray[np.bool_]:
    """Which examples of a split the file gets right; (examples,)."""

    def batches() -> Iterator[tuple[Batch, NDArray[np.int64]]]:
        for inputs, labels in bench.data.batches(split, EVALUATION_BATCH):
            with bench.each_batch():
                yield tuple(x.numpy() for x in inputs), labels.numpy()

    return hits(path, batches(), bench.threads)


def parity(bench: Bench, path: Path, deployable: torch.fx.GraphModule, plan: Plan) -> Parity:
    """Compare the file with the torch network that simulates it, on validation and calibration inputs.

    Raises:
        TrialFailed: they disagree.
    """
    integer = any(p.integer_activations for p in plan.quantization.precisions.values())
    simulation = with_rounded_biases(deployable) if integer else deployable
    inputs, expected = [], []
    for batch in _parity_inputs(bench.data):
        with bench.each_batch(), torch.no_grad():
            expected.append(simulation(*batch).numpy())
        inputs.append(tuple(x.numpy() for x in batch))
    return check_parity(path, inputs, np.concatenate(expected), integer, bench.threads)


def _parity_inputs(data: TaskData) -> Iterator[tuple[Tensor, ...]]:
    """Up to PARITY_EXAMPLES of each split, spread over it: rows may be sorted by class."""
    for split in (data.validation, data.calibration):
        rows = torch.linspace(0, len(split) - 1, min(PARITY_EXAMPLES, len(split))).long()
        for batch, _ in data.batches(split.take(rows), EVALUATION_BATCH):
            yield batch
