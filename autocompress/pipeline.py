"""Plan -> file: the only place that knows the order of the stages.

    build -> prune -> trace, fold, place quantisers -> export the structure            (draft: bytes and latency)
          -> train with distillation -> fold, calibrate, train quantised -> encode   (finish: accuracy)

The graph is exported once, before training: bytes and latency depend on the plan alone, and the trained
tensors fit the same graph.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.fx
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from autocompress.candidate import Accuracy, Parity, Score
from autocompress.compression.architecture import drop_blocks, inherit_weights_
from autocompress.compression.distillation import (
    Acceleration,
    Schedule,
    Teacher,
    mark_features_,
    seconds_per_step_,
    train_,
)
from autocompress.compression.elastic import Member, SharedWeights, make_member
from autocompress.compression.inner_widths import InnerWidth, find_inner_widths
from autocompress.compression.pruning import find_groups, kept_units, with_units
from autocompress.compression.quantization import (
    attach_weight_quantizers_,
    calibrate_,
    deployment_tensors,
    fold_batch_norm_,
    insert_activation_quantizers_,
    integer_weights,
    with_rounded_biases,
)
from autocompress.compression.shrinking import shrunken_state
from autocompress.config import TrainingSection
from autocompress.data.task import Split, TaskData
from autocompress.deploy.encoding import LayerWeights, encode_weights, strip
from autocompress.deploy.export import export_graph, fill_with_random_values_, initializer_names
from autocompress.deploy.measure import Batch, check_parity, compare_hits, compare_scores, outputs
from autocompress.errors import DataError, ModelError, first_line
from autocompress.layers import classifier_name, trace
from autocompress.models import ModelSpace, freeze
from autocompress.plan import Plan, Precision
from autocompress.stage_clock import StageClock
from autocompress.whole_file import written_whole

EVALUATION_BATCH = 100
CALIBRATION_BATCH = 64
PARITY_EXAMPLES = 250
QUANTIZED = {"muon": "sgd", "sgd": "sgd", "adamw": "adamw"}
"""Optimiser of the quantised phase."""
QUANTIZED_RATE = 0.15
"""Its rate, as a share of ``learning_rate``: the network is nearly done, and with
batch norm folded nothing keeps large steps from growing (docs/log.md)."""
QUANTIZED_STEPS = 600
"""Of the quantised phase at most: what rounding costs is won back soon."""
PROBED_STEPS = 6
"""Of a network, to find out how long one takes."""

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
    deployed_batch: int = 1
    inner: Mapping[str, InnerWidth] = field(default_factory=dict)


@dataclass(frozen=True)
class Draft:
    """A candidate whose structure is final and whose weights are not trained yet.

    ``traced`` is the network before anything is folded or quantised; it lends its graph, not its weights.
    """

    network: nn.Module
    traced: torch.fx.GraphModule
    graph: onnx.ModelProto


def build_network(bench: Bench, plan: Plan) -> nn.Module:
    """The network of a plan with inherited weights, before any training.

    Raises:
        KeyError, AttributeError: the plan names layers or blocks that the network does not have.
    """
    network, kept, inner = _unpruned(bench, plan)
    return with_units(network, bench.data.example_inputs(2), kept, inner)


def take_over(bench: Bench, plan: Plan, trained_plan: Plan, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """What a plan's network takes over from one that was trained: all of it where their shapes are the same, the
    most important units where it is smaller; None where it has something that the trained one lacks.
    """
    trained, network = build_network(bench, trained_plan), build_network(bench, plan)
    trained.load_state_dict(state)
    inner, kept = (_inner_widths_anew(bench, n) if bench.inner else {} for n in (trained, network))
    inputs = bench.data.example_inputs(2)
    in_base = plan.architecture.family == trained_plan.architecture.family == "base"
    found = plan.pruning.ratios if in_base else [g.name for g in find_groups(trained, inputs, [*inner.values()])[0]]
    return shrunken_state(trained.eval(), network, found, inputs, inner, kept)


def build_member(bench: Bench, plan: Plan, shared: SharedWeights) -> Member:
    """The same network as a member of shared weights, for which room is made where there is none."""
    network, kept, inner = _unpruned(bench, plan)
    shared.cover_(bench.base if plan.architecture.family == "base" else network)
    return make_member(network, bench.data.example_inputs(2), kept, inner, plan.quantization.precisions)


def _unpruned(bench: Bench, plan: Plan) -> tuple[nn.Module, dict[str, Tensor], Mapping[str, InnerWidth]]:
    """The network of a plan's architecture, the units that its pruning keeps, and its inner widths."""
    torch.manual_seed(plan.seed)
    architecture = plan.architecture
    if architecture.family == "base":
        network = drop_blocks(bench.base, architecture.dropped_blocks)
    else:
        network, _ = freeze(bench.space, lambda label, _options: architecture.choices[label])
        inherit_weights_(network, bench.base)
    network.eval()
    inner = _inner_widths(bench, network, plan)
    inputs, ratios = bench.data.example_inputs(2), plan.pruning.ratios
    return network, kept_units(network, inputs, ratios, bench.channel_multiple, inner), inner


def _inner_widths(bench: Bench, network: nn.Module, plan: Plan) -> Mapping[str, InnerWidth]:
    """Known of the base; of a member of the model space found where something is to be pruned."""
    if plan.architecture.family == "base" or not any(plan.pruning.ratios.values()):
        return bench.inner
    return _inner_widths_anew(bench, network)


def _inner_widths_anew(bench: Bench, network: nn.Module) -> Mapping[str, InnerWidth]:
    found, _ = find_inner_widths(network, trace_network(bench, network), bench.data.example_inputs(2))
    return {width.name: width for width in found}


def least_size_bytes(network: nn.Module, plan: Plan) -> int:
    """Bytes of the packed weights that the plan names, which no file of it can fall below."""
    bits = 0
    for name, parameter in network.named_parameters():
        precisions = plan.quantization.precisions
        precision = precisions.get(name) or precisions.get(name.removesuffix(".weight"))
        is_weight = parameter.dim() > 1 and precision is not None
        bits += parameter.numel() * precision.stored_bits if is_weight and precision is not None else 0
    return bits // 8


def trace_network(bench: Bench, network: nn.Module) -> torch.fx.GraphModule:
    """The network as a graph, traced on the task's data."""
    return trace(network.eval(), bench.data.example_inputs(2), bench.data.axes)


def draft(bench: Bench, network: nn.Module, plan: Plan, path: Path, clock: StageClock) -> Draft:
    """Write the untrained file of a network, which has the final bytes and latency.

    Args:
        network: what :func:`build_network` made of the plan.

    Raises:
        TrialFailed: the network cannot be exported or encoded.
    """
    with clock.stage("export"):
        traced = trace_network(bench, network)
        structure = deployable_of(network, traced, plan.quantization.precisions)
        data = bench.data
        graph = export_graph(structure, data.example_inputs(2), data.input_names, data.axes)
        fill_with_random_values_(structure)
        attach_weight_quantizers_(structure, plan.quantization.precisions)
        write_file(graph, structure, plan, path)
    return Draft(network, traced, graph)


def finish(
    bench: Bench, draft: Draft, plan: Plan, path: Path, checkpoint: Path, clock: StageClock
) -> torch.fx.GraphModule:
    """Train the draft, write the float weights to ``checkpoint`` and the final file to ``path``.

    Returns:
        The network that simulates the file in torch.

    Raises:
        TrialFailed: the loss diverges, or the trained tensors do not fit the graph.
    """
    settings = bench.training
    rounded_steps = quantized_steps(settings, plan)
    full_rate = plan.training.learning_rate or settings.peak_rate(plan.architecture.family)
    with clock.stage("train"), _teaching(bench, clock):
        _train(bench, draft.network, plan, plan.training.steps - rounded_steps, full_rate, settings.optimizer)
        save_file(float_state(draft.network), checkpoint)
    deployable = deployable_of(draft.network, draft.traced, plan.quantization.precisions)
    attach_weight_quantizers_(deployable, plan.quantization.precisions)
    with clock.stage("calibrate"):
        calibrate_(deployable, _calibration_batches(bench))
    mark_features_(deployable, classifier_name(draft.network))
    with clock.stage("train"), _teaching(bench, clock):
        rate = QUANTIZED_RATE * settings.learning_rate
        _train(bench, deployable, plan, rounded_steps, rate, QUANTIZED[settings.optimizer])
    with clock.stage("export"):
        deployable.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        write_file(draft.graph, deployable, plan, path)
    return deployable


def quantized_steps(settings: TrainingSection, plan: Plan) -> int:
    """Steps at the end of a plan's training that have fake quantisation; none where no weights are rounded."""
    if not any(precision.weight_bits for precision in plan.quantization.precisions.values()):
        return 0
    wished = plan.training.quantized_fraction
    share = settings.quantized_fraction if wished is None else wished
    return min(round(plan.training.steps * share), QUANTIZED_STEPS)


@contextmanager
def _teaching(bench: Bench, clock: StageClock) -> Iterator[None]:
    """Charge what the body waits for the teacher's new answers to a stage of its own: later trainings know them."""
    before = 0.0 if bench.teacher is None else bench.teacher.seconds
    yield
    waited = 0.0 if bench.teacher is None else bench.teacher.seconds - before
    clock.charge("teach", waited)
    clock.charge("train", -waited)


def faster_teacher(base: nn.Module, data: TaskData) -> nn.Module | None:
    """A network with the base's answers and its batch norms folded; None where there is none to fold, or no graph."""
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in base.modules()):
        return None
    try:
        traced = trace(base.eval(), data.example_inputs(2), data.axes)
    except ModelError:  # each trial will say so
        return None
    folded = deployable_of(base, traced, {})
    mark_features_(folded, classifier_name(base))
    return folded


def float_state(network: nn.Module) -> dict[str, Tensor]:
    """The state that a continued training starts from."""
    return {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}


def deployable_of(
    network: nn.Module, traced: torch.fx.GraphModule, precisions: Mapping[str, Precision]
) -> torch.fx.GraphModule:
    """The traced network with the weights of ``network``, folded, rounding where the precisions say."""
    deployable = copy.deepcopy(traced)
    state, own = network.state_dict(), deployable.state_dict()
    deployable.load_state_dict({name: state[name] for name in own if name in state}, strict=False)
    fold_batch_norm_(deployable)
    insert_activation_quantizers_(deployable, precisions)
    return deployable


def measured_step_s(bench: Bench, plan: Plan) -> float:
    """Seconds of one step of a plan's training on this machine, by :data:`PROBED_STEPS` of them.

    Raises:
        TrialFailed: the network's outputs are not finite.
    """
    settings = bench.training
    schedule = _schedule(bench, plan, PROBED_STEPS, settings.learning_rate, settings.optimizer)
    network = build_network(bench, plan)
    return seconds_per_step_(network, bench.data, schedule, bench.teacher, plan.distillation, settings.views)


def _train(bench: Bench, network: nn.Module, plan: Plan, steps: int, rate: float, optimizer: str) -> None:
    schedule = _schedule(bench, plan, steps, rate, optimizer)
    train_(network, bench.data, bench.teacher, plan.distillation, schedule, bench.training.views)


def _schedule(bench: Bench, plan: Plan, steps: int, rate: float, optimizer: str) -> Schedule:
    return Schedule(
        steps=steps,
        learning_rate=rate,
        batch_size=bench.training.batch_size,
        weight_decay=bench.training.weight_decay,
        seed=plan.seed,
        optimizer=optimizer,
        acceleration=bench.acceleration,
        each_batch=bench.each_batch,
    )


def _calibration_batches(bench: Bench) -> Iterator[tuple[Tensor, ...]]:
    for inputs, _ in bench.data.batches(bench.data.calibration, CALIBRATION_BATCH):
        with bench.each_batch():
            yield inputs


def write_file(graph: onnx.ModelProto, deployable: torch.fx.GraphModule, plan: Plan, path: Path) -> None:
    """Encode the network's tensors into its graph and write the file, atomically."""
    precisions = plan.quantization.precisions
    layers = {
        name: LayerWeights(
            weight.values.numpy(),
            weight.scales.numpy(),
            weight.bits,
            precisions[name].integer_activations,
            precisions[name].dynamic,
            weight.layer.out_axis,
        )
        for name, weight in integer_weights(deployable).items()
    }
    stored = initializer_names(graph)
    tensors = {
        name: value.detach().contiguous().numpy()
        for name, value in deployment_tensors(deployable).items()
        if name in stored
    }
    with written_whole(path) as file:
        file.write(strip(encode_weights(graph, layers, tensors)).SerializeToString())


def answers(bench: Bench, path: Path, split: Split, plan: Plan) -> NDArray[Any]:
    """:func:`file_answers` of a candidate."""
    size = evaluation_batch(plan, bench.deployed_batch)
    return file_answers(bench.data, path, split, size, bench.threads, bench.each_batch)


def evaluation_batch(plan: Plan, deployed_batch: int) -> int:
    """How many examples a file is given at once where its answers are counted.

    Where the range of an input is found when it arrives, an answer depends on what shares its batch: such a file
    gets batches of the size that it is deployed with.
    """
    dynamic = any(precision.dynamic for precision in plan.quantization.precisions.values())
    return deployed_batch if dynamic else EVALUATION_BATCH


def file_answers(
    data: TaskData, path: Path, split: Split, batch_size: int, threads: int, each_batch: Guard
) -> NDArray[Any]:
    """What the file answers on a split: which examples it gets right (examples,), or its outputs (examples, ...)
    where the task has a metric of its own.
    """

    def batches() -> Iterator[Batch]:
        for inputs, _ in data.batches(split, batch_size):
            with each_batch():
                yield tuple(x.numpy() for x in inputs)

    found = outputs(path, batches(), threads)
    if data.metric is not None:
        return found
    return np.asarray(found.argmax(axis=1) == split.labels.numpy())


def compare(data: TaskData, split: Split, own: NDArray[Any], baseline: NDArray[Any]) -> Accuracy | Score:
    """Accuracy or metric of a file's :func:`answers`, paired with the baseline's.

    Raises:
        DataError: the split is not the one that the baseline saw.
        ModelError: the metric fails, or is no finite number.
    """
    if own.shape != baseline.shape:
        raise DataError(
            f"the data must be those of the run; the split has {len(own)} examples and had {len(baseline)}; restore the data"
        )
    if data.metric is None:
        return compare_hits(own, baseline)
    return compare_scores(
        own, baseline, lambda outputs, rows: score(data, outputs, split.labels[torch.from_numpy(rows)])
    )


def score(data: TaskData, outputs: NDArray[np.float32], targets: Tensor) -> float:
    """The task's metric as a finite number.

    Raises:
        ModelError: the metric raises, or gives something else.
    """
    assert data.metric is not None
    name = getattr(data.metric, "__name__", "task.metric")
    try:
        value = float(data.metric(torch.from_numpy(outputs), targets))
    except Exception as error:
        raise ModelError(
            f"a metric takes (outputs, targets); {name} raised {type(error).__name__}: {first_line(error)}; "
            f"outputs are {list(outputs.shape)}, targets {list(targets.shape)}; correct task.metric"
        ) from error
    if not math.isfinite(value):
        raise ModelError(f"a metric is a finite number; {name} gave {value}; correct task.metric")
    return value


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
    classes = bench.data.metric is None and bench.data.loss is None
    return check_parity(path, inputs, np.concatenate(expected), integer, bench.threads, classes)


def _parity_inputs(data: TaskData) -> Iterator[tuple[Tensor, ...]]:
    """Up to PARITY_EXAMPLES of each split, spread over it: rows may be sorted by class."""
    for split in (data.validation, data.calibration):
        rows = torch.linspace(0, len(split) - 1, min(PARITY_EXAMPLES, len(split))).long()
        for batch, _ in data.batches(split.take(rows), EVALUATION_BATCH):
            yield batch
