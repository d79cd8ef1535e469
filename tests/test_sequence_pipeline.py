"""Plans for networks on sequences, and for tasks with a loss and a metric of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processors import EIGHT_BITS
from sequences import HEADS, WIDTH, WORDS, Encoder, r2, task, texts
from torch import Tensor

from autocompress.analysis import Analysis, analyse, time_shares
from autocompress.candidate import Accuracy, Score
from autocompress.compression.distillation import Acceleration, Schedule, Teacher, train_
from autocompress.compression.intermediate import Points
from autocompress.config import TrainingSection
from autocompress.deploy.encoding import count_fused
from autocompress.deploy.session import open_session, predict
from autocompress.errors import DataError, ModelError
from autocompress.pipeline import (
    EVALUATION_BATCH,
    Bench,
    answers,
    build_network,
    compare,
    draft,
    evaluation_batch,
    finish,
    parity,
    score,
)
from autocompress.plan import (
    ArchitectureSpec,
    DistillationSpec,
    Plan,
    Precision,
    PruningSpec,
    QuantizationSpec,
    TrainingSpec,
)
from autocompress.stage_clock import StageClock


class Setting:
    """A trained base with its analysis and bench."""

    def __init__(self, numbers: bool) -> None:
        self.data = task(numbers)
        torch.manual_seed(0)
        self.base = Encoder(1 if numbers else 2)
        schedule = Schedule(steps=150, learning_rate=0.01, batch_size=32, weight_decay=0.0, seed=0, optimizer="adamw")
        train_(self.base, self.data, None, DistillationSpec(), schedule, views=1)
        inputs = self.data.model_inputs(self.data.calibration, torch.arange(64))
        self.analysis = analyse(self.base.eval(), inputs, self.data.axes, classification=not numbers)
        training = TrainingSection(steps=6, batch_size=32, learning_rate=0.002, views=1, optimizer="adamw")
        blocks = ("layers.0", "layers.1", "layers.2")
        points = Points(blocks, tuple((f"{block}.q", f"{block}.k", f"{block}.v") for block in blocks))
        teacher = Teacher(self.base, self.data, 1, Acceleration(), points)
        self.bench = Bench(self.base, self.data, training, 8, teacher=teacher, inner=self.analysis.inner)
        self.made: dict[str, tuple[Path, torch.fx.GraphModule]] = {}

    def plan(self, precision: Precision, steps: int = 6, **parts: object) -> Plan:
        precisions = {layer.name: precision.for_layer(layer.kind) for layer in self.analysis.layers}
        dropped = getattr(parts.get("architecture"), "dropped_blocks", ())
        kept = {
            name: p for name, p in precisions.items() if not name.startswith(tuple(f"{d}." for d in dropped) or " ")
        }
        return Plan(quantization=QuantizationSpec(precisions=kept), training=TrainingSpec(steps=steps), seed=5, **parts)

    def make(self, plan: Plan, folder: Path, again: bool = False) -> tuple[Path, torch.fx.GraphModule]:
        """File of a plan, and the network that simulates it; each plan is made once."""
        key = plan.model_dump_json()
        if key not in self.made or again:
            self.made[key] = self._make(plan, folder)
        return self.made[key]

    def _make(self, plan: Plan, folder: Path) -> tuple[Path, torch.fx.GraphModule]:
        folder.mkdir(exist_ok=True)
        path, network, clock = folder / "model.onnx", build_network(self.bench, plan), StageClock()
        unfinished = draft(self.bench, network, plan, path, clock)
        return path, finish(self.bench, unfinished, plan, path, folder / "weights.safetensors", clock)


@pytest.fixture(scope="module")
def classes() -> Setting:
    return Setting(numbers=False)


@pytest.fixture(scope="module")
def numbers() -> Setting:
    return Setting(numbers=True)


def small_plan(setting: Setting, precision: Precision) -> Plan:
    """A block less, heads and hidden units less, and all that can be learned from a teacher."""
    return setting.plan(
        precision,
        architecture=ArchitectureSpec(dropped_blocks=("layers.1",)),
        pruning=PruningSpec(ratios={"layers.0.q": 0.5, "layers.2.q": 0.25, "layers.0.up": 0.5}),
        distillation=DistillationSpec(alpha=0.5, hint_weight=0.1, hidden_weight=0.3, relation_weight=0.3),
    )


# What can change


def test_all_that_can_change_in_an_encoder_is_named(classes: Setting) -> None:
    analysis = classes.analysis
    (run,) = analysis.runs
    assert run.in_order == ("layers.0", "layers.1", "layers.2")
    kinds = {group.name: (group.kind, group.channels) for group in analysis.groups}
    assert [kinds.pop(f"layers.{n}.q") for n in range(3)] == [("heads", HEADS)] * 3
    assert [kinds.pop(f"layers.{n}.up") for n in range(3)] == [("mlp", 32)] * 3
    assert all(kind == "channels" for kind, _ in kinds.values())
    assert {layer.kind for layer in analysis.layers} == {"embedding", "linear"}
    assert analysis.layers[0].name == "words" and analysis.layers[0].parameters == WORDS * WIDTH
    assert analysis.inner.keys() == {f"layers.{n}.{p}" for n in range(3) for p in ("q", "up")}
    assert Analysis.model_validate_json(analysis.model_dump_json()) == analysis
    assert not analysis.decides_nothing


def test_blocks_of_a_task_without_classes_are_ranked_by_the_distance_of_the_outputs(numbers: Setting) -> None:
    from autocompress.compression.architecture import drop_blocks

    (run,) = numbers.analysis.runs
    assert list(run.sensitivities) == sorted(run.sensitivities)
    inputs = numbers.data.model_inputs(numbers.data.calibration, torch.arange(64))
    with torch.no_grad():
        whole = numbers.base(*inputs)
        for block, found in zip(run.blocks, run.sensitivities, strict=True):
            without = drop_blocks(numbers.base, (block,))(*inputs)
            assert found == pytest.approx(float((without - whole).square().mean() / whole.var()), rel=1e-4)


def test_shares_of_time_are_shares(classes: Setting) -> None:
    shares = time_shares(classes.base, classes.data.example_inputs(2), classes.data.axes, classes.analysis)
    assert shares.keys() == {"blocks", "groups", "layers"}
    assert all(0 < share <= 1 for share in shares.values())
    assert shares["layers"] < 1  # norms, attention and activations are of no layer


# From plan to file


@pytest.mark.parametrize("precision", [Precision.W4A8_DYNAMIC, EIGHT_BITS, Precision.W4], ids=str)
def test_a_small_encoder_goes_the_whole_road(classes: Setting, precision: Precision, tmp_path: Path) -> None:
    plan = small_plan(classes, precision)
    path, deployable = classes.make(plan, tmp_path)
    found = parity(classes.bench, path, deployable, plan)
    if precision.integer_activations:
        assert found.top1_agreement is not None and found.top1_agreement >= 0.99
    else:
        assert found.relative_error is not None and found.relative_error <= 1e-4
    sizes = _matrices(deployable)
    assert not any(name.startswith("layers.1.") for name in sizes)
    assert sizes["layers.0.q"] == sizes["layers.0.v"] == (8, WIDTH) and sizes["layers.0.out"] == (WIDTH, 8)
    assert sizes["layers.2.k"] == (12, WIDTH) and sizes["layers.2.out"] == (WIDTH, 12)
    assert sizes["layers.0.up"] == (16, WIDTH) and sizes["layers.2.up"] == (32, WIDTH)
    other = texts(5, 9, numbers=False).inputs[0][:, :3]
    assert predict(open_session(path, 1), [(other.numpy(),), (other[:1].numpy(),)]).shape == (6, 2)
    kernels = count_fused(path)
    integer = kernels.get("MatMulIntegerToFloat", 0) + kernels.get("DynamicQuantizeMatMul", 0) + kernels.get("QGemm", 0)
    assert integer == (2 * 6 + 1 if precision.integer_activations else 0)


def _matrices(deployable: torch.fx.GraphModule) -> dict[str, tuple[int, int]]:
    from autocompress.layers import weight_layers

    named = dict(deployable.named_parameters())
    found = {}
    for name, layer in weight_layers(deployable).items():
        owner, _, attribute = layer.weight.rpartition(".")
        tensor = named.get(layer.weight, named.get(f"{owner}.parametrizations.{attribute}.original"))
        assert tensor is not None
        found[name] = (int(tensor.shape[0]), int(tensor.shape[1]))
    return found


def test_a_replayed_plan_gives_the_same_bytes(classes: Setting, tmp_path: Path) -> None:
    plan = small_plan(classes, Precision.W4A8_DYNAMIC)
    first, _ = classes.make(plan, tmp_path / "first")
    torch.manual_seed(99)
    again, _ = classes.make(Plan.model_validate_json(plan.model_dump_json()), tmp_path / "again", again=True)
    assert first.read_bytes() == again.read_bytes()


@pytest.mark.parametrize("part", ["hidden_weight", "relation_weight", "hint_weight"])
def test_every_lesson_matters(classes: Setting, part: str) -> None:
    plan = small_plan(classes, Precision.W8)
    schedule = Schedule(steps=3, learning_rate=0.002, batch_size=32, weight_decay=0.0, seed=0, optimizer="adamw")

    def weights(spec: DistillationSpec) -> Tensor:
        student = build_network(classes.bench, plan)
        train_(student, classes.data, classes.bench.teacher, spec, schedule, views=1)
        return student.get_parameter("layers.0.q.weight")

    without = plan.distillation.model_copy(update={part: 0.0})
    assert not torch.equal(weights(plan.distillation), weights(without))


def test_an_untrained_float_plan_is_the_base_itself(classes: Setting, tmp_path: Path) -> None:
    plan = classes.plan(Precision.FLOAT32, steps=0)
    path, _ = classes.make(plan, tmp_path)
    data = classes.data
    with torch.no_grad():
        expected = classes.base(*data.validation.inputs).argmax(dim=1) == data.validation.labels
    found = answers(classes.bench, path, data.validation, plan)
    np.testing.assert_array_equal(found, expected.numpy())
    assert found.mean() > 0.9
    own = compare(data, data.validation, found, found)
    assert isinstance(own, Accuracy) and own.drop_points == 0


# Where the range is found as the input arrives, an answer depends on its batch


def test_files_with_dynamic_ranges_are_evaluated_in_batches_as_deployed() -> None:
    def of(precision: Precision) -> Plan:
        return Plan(quantization=QuantizationSpec(precisions={"a": Precision.FLOAT32, "b": precision}))

    assert evaluation_batch(of(Precision.W8A8_DYNAMIC), 3) == 3
    assert evaluation_batch(of(Precision.W8A8), 3) == evaluation_batch(of(Precision.W4), 3) == EVALUATION_BATCH
    assert evaluation_batch(Plan(), 1) == EVALUATION_BATCH


def test_answers_of_dynamic_files_are_those_of_the_deployed_batch(numbers: Setting, tmp_path: Path) -> None:
    plan = numbers.plan(Precision.W2A8_DYNAMIC, steps=0)
    path, _ = numbers.make(plan, tmp_path)
    split = numbers.data.test
    found = answers(replace(numbers.bench, deployed_batch=4), path, split, plan)
    rows = split.inputs[0].numpy()
    expected = predict(open_session(path, 1), [(rows[n : n + 4],) for n in range(0, len(rows), 4)])
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, answers(replace(numbers.bench, deployed_batch=50), path, split, plan))


# A metric instead of accuracy


def test_numbers_are_measured_by_their_metric(numbers: Setting, tmp_path: Path) -> None:
    data, plans = numbers.data, [numbers.plan(Precision.FLOAT32, steps=0), small_plan(numbers, Precision.W4A8_DYNAMIC)]
    base, small = (
        answers(numbers.bench, numbers.make(plan, tmp_path / str(n))[0], data.validation, plan)
        for n, plan in enumerate(plans)
    )
    assert base.shape == (200, 1) and base.dtype == np.float32
    found = compare(data, data.validation, small, base)
    assert isinstance(found, Score)
    assert found.value == pytest.approx(r2(torch.from_numpy(small), data.validation.labels), abs=1e-6)
    assert found.baseline == pytest.approx(r2(torch.from_numpy(base), data.validation.labels), abs=1e-6)
    assert found.baseline > 0.9
    assert found.low <= found.value <= found.high
    low, high = found.drop_interval_points()
    assert low <= found.drop_points <= high and found.total == 200


def test_numbers_are_compared_by_value(numbers: Setting, tmp_path: Path) -> None:
    plan = small_plan(numbers, Precision.W4A8_DYNAMIC)
    path, deployable = numbers.make(plan, tmp_path)
    found = parity(numbers.bench, path, deployable, plan)
    assert found.top1_agreement is None
    assert found.relative_error is not None and found.relative_error <= 0.03


def metrics() -> dict[str, object]:
    def nothing(outputs: Tensor, targets: Tensor) -> float:
        return float("nan")

    def endless(outputs: Tensor, targets: Tensor) -> float:
        return float("inf")

    def fails(outputs: Tensor, targets: Tensor) -> float:
        raise ZeroDivisionError("of what\nlines below")

    def words(outputs: Tensor, targets: Tensor) -> str:
        return "good"

    return {"nan": nothing, "inf": endless, "of what": fails, "could not convert": words}


@pytest.mark.parametrize("said", metrics())
def test_a_metric_that_gives_no_number_is_refused_on_one_line(numbers: Setting, said: str) -> None:
    data = replace(numbers.data, metric=metrics()[said])
    with pytest.raises(ModelError, match=said) as refusal:
        score(data, np.zeros((200, 1), np.float32), data.validation.labels)
    message = str(refusal.value)
    assert "task.metric" in message and "\n" not in message
    assert data.metric is not None and data.metric.__name__ in message


def test_answers_to_another_split_are_refused(numbers: Setting) -> None:
    zeros = np.zeros((200, 1), np.float32)
    with pytest.raises(DataError, match="150 examples and had 200"):
        compare(numbers.data, numbers.data.validation, zeros[:150], zeros)
