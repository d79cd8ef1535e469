"""A plan decides its file to the byte, and the file holds what was trained."""

from __future__ import annotations

import copy
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from benches import make_bench
from processors import EIGHT_BITS
from safetensors.torch import load_file
from torch import nn

from autocompress.analysis import analyse
from autocompress.compression.distillation import Acceleration, Teacher
from autocompress.compression.quantization import integer_weights
from autocompress.data.task import TaskData
from autocompress.deploy.encoding import count_fused, unpack_weights
from autocompress.errors import TrialFailed
from autocompress.layers import trace, weight_layers
from autocompress.pipeline import (
    Bench,
    answers,
    build_network,
    draft,
    faster_teacher,
    finish,
    least_size_bytes,
    parity,
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

LAYERS = ["stem", "stage1.0.conv1", "stage1.0.conv2", "stage1.1.conv1", "stage1.1.conv2", "reduce",
          "stage2.0.conv1", "stage2.0.conv2", "linear"]  # fmt: skip
SHALLOW = [name for name in LAYERS if not name.startswith("stage1.0")]
CHOICES = {
    "stem.width": 8, "stage1.depth": 1, "stage1.block0.kernel": 5, "stage2.width": 16, "stage2.depth": 1,
    "stage2.block0.kernel": 3, "stage3.block0.kernel": 3,
}  # fmt: skip


def plan(precisions: dict[str, Precision], steps: int = 6, **parts: Any) -> Plan:
    return Plan(
        quantization=QuantizationSpec(precisions=precisions), training=TrainingSpec(steps=steps), seed=5, **parts
    )


def mixed_plan() -> Plan:
    """A bit of everything."""
    options = [EIGHT_BITS, Precision.W4A8, Precision.W3A8, Precision.W6]
    return plan(
        {name: options[n % 4] for n, name in enumerate(SHALLOW)},
        architecture=ArchitectureSpec(dropped_blocks=("stage1.0",)),
        pruning=PruningSpec(ratios={"stage1.1.conv1": 0.5, "stage2.0.conv1": 0.25}),
        distillation=DistillationSpec(alpha=0.6, temperature=3.0, hint_weight=0.2),
    )


def space_plan(space: Any) -> Plan:
    from autocompress.models import freeze

    member, choices = freeze(space, lambda label, options: CHOICES.get(label, options[0]))
    example = torch.zeros(2, 1, 32, 32)
    precisions = dict.fromkeys(weight_layers(trace(member.eval(), (example,))), Precision.W4A8)
    return plan(precisions, architecture=ArchitectureSpec(family="space", choices=choices))


class Made:
    """What the stages made of one plan."""

    def __init__(self, bench: Bench, plan: Plan, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.plan, self.path, self.checkpoint = plan, folder / "model.onnx", folder / "weights.safetensors"
        self.clock = StageClock()
        self.network = build_network(bench, plan)
        unfinished = draft(bench, self.network, plan, self.path, self.clock)
        self.draft_bytes = self.path.read_bytes()
        self.draft_operators = count_fused(self.path)
        self.deployable = finish(bench, unfinished, plan, self.path, self.checkpoint, self.clock)
        self.bytes = self.path.read_bytes()


@pytest.fixture(scope="module")
def mixed(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(bench, mixed_plan(), tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def int8(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(bench, plan(dict.fromkeys(LAYERS, EIGHT_BITS)), tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def float32(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(bench, plan(dict.fromkeys(LAYERS, Precision.FLOAT32), steps=0), tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def weight_only(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(bench, plan(dict.fromkeys(LAYERS, Precision.W3), steps=2), tmp_path_factory.mktemp("weight_only"))


# Replay


def test_a_replayed_plan_gives_the_same_bytes(
    mixed: Made, int8: Made, trained: nn.Module, digits: TaskData, tmp_path: Path
) -> None:
    """From its JSON, in a fresh bench: what the teacher was asked before must not matter."""
    again = Made(make_bench(trained, digits), Plan.model_validate_json(mixed.plan.model_dump_json()), tmp_path)
    assert again.bytes == mixed.bytes
    assert again.checkpoint.read_bytes() == mixed.checkpoint.read_bytes()


def test_a_replayed_member_of_the_space_gives_the_same_bytes(bench: Bench, small_space: Any, tmp_path: Path) -> None:
    first = Made(bench, space_plan(small_space), tmp_path / "first")
    torch.manual_seed(12345)
    second = Made(bench, Plan.model_validate_json(first.plan.model_dump_json()), tmp_path / "second")
    assert first.bytes == second.bytes
    assert first.network.conv1.out_channels == 8


@pytest.mark.parametrize("change", [{"seed": 6}, {"distillation": DistillationSpec(alpha=0.1)}])
def test_every_part_of_a_plan_matters(mixed: Made, bench: Bench, change: dict[str, Any], tmp_path: Path) -> None:
    assert Made(bench, mixed.plan.model_copy(update=change), tmp_path).bytes != mixed.bytes


def test_making_candidates_leaves_the_base_alone(bench: Bench, trained: nn.Module, tmp_path: Path) -> None:
    before = copy.deepcopy(trained.state_dict())
    Made(bench, mixed_plan(), tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not trained.training


# The file and the network


@pytest.mark.parametrize("name", ["mixed", "int8"])
def test_the_integers_in_the_file_are_the_trained_ones(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    trained_integers = integer_weights(made.deployable)
    decoded = unpack_weights(onnx.load(made.path))
    assert len(decoded) == len(trained_integers) == len(made.plan.quantization.precisions)
    # in the file they stand in order of execution, which is that of registration here
    for values, expected in zip(decoded, trained_integers.values(), strict=True):
        np.testing.assert_array_equal(values, expected.values.numpy())
        assert int(np.abs(values.astype(int)).max()) <= 2 ** (expected.bits - 1)
        assert len(np.unique(values)) > 1


def test_the_structure_is_that_of_the_plan(mixed: Made) -> None:
    shapes = {name: tuple(weight.values.shape) for name, weight in integer_weights(mixed.deployable).items()}
    assert list(shapes) == SHALLOW
    assert shapes["stage1.1.conv1"] == (8, 16, 3, 3)
    assert shapes["stage1.1.conv2"] == (16, 8, 3, 3)
    assert shapes["stage2.0.conv1"] == (24, 32, 3, 3)
    assert not any("batch_norm" in str(node.target) for node in mixed.deployable.graph.nodes)


def test_a_float_file_equals_torch(float32: Made, bench: Bench) -> None:
    found = parity(bench, float32.path, float32.deployable, float32.plan)
    assert found.relative_error is not None and found.relative_error <= 1e-4


def test_an_untrained_float_plan_is_the_base_itself(float32: Made, bench: Bench, trained: nn.Module) -> None:
    found = answers(bench, float32.path, bench.data.validation, float32.plan)
    with torch.no_grad():
        logits = trained(*bench.data.model_inputs(bench.data.validation, torch.arange(len(bench.data.validation))))
    np.testing.assert_array_equal(found, (logits.argmax(dim=1) == bench.data.validation.labels).numpy())
    assert found.mean() > 0.5


@pytest.mark.parametrize("name", ["mixed", "int8"])
def test_an_integer_file_answers_as_torch_simulates(name: str, bench: Bench, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    found = parity(bench, made.path, made.deployable, made.plan)
    assert found.top1_agreement is not None and found.top1_agreement >= 0.99


def test_a_weight_only_file_is_compared_by_value(weight_only: Made, bench: Bench) -> None:
    found = parity(bench, weight_only.path, weight_only.deployable, weight_only.plan)
    assert found.relative_error is not None and found.relative_error <= 1e-4


def test_a_file_of_another_network_has_no_parity(float32: Made, mixed: Made, bench: Bench) -> None:
    other = copy.deepcopy(float32.deployable)
    with torch.no_grad():
        other.get_parameter("stem.weight")[3, 0, 1, 1] += 0.1
    for path, network, made in ((float32.path, other, float32), (mixed.path, float32.deployable, float32)):
        with pytest.raises(TrialFailed) as failure:
            parity(bench, path, network, made.plan)
        assert failure.value.kind == "parity"


def test_int8_costs_little_accuracy_even_untrained(bench: Bench, float32: Made, tmp_path: Path) -> None:
    made = Made(bench, plan(dict.fromkeys(LAYERS, EIGHT_BITS), steps=0), tmp_path)
    whole, small = (answers(bench, m.path, bench.data.validation, m.plan).mean() for m in (float32, made))
    assert small >= whole - 0.02


def test_a_long_quantised_phase_wins_back_what_rounding_costs(bench: Bench, tmp_path: Path) -> None:
    """With batch norm folded nothing bounds a step: a rate that is too high destroys the network, but not at once."""
    long = replace(bench, training=bench.training.model_copy(update={"learning_rate": 0.1, "quantized_fraction": 0.9}))
    low = dict.fromkeys(LAYERS, Precision.W3A8)
    rounded, trained = (
        Made(bench, plan(low, steps=0), tmp_path / "rounded"),
        Made(long, plan(low, 600), tmp_path / "trained"),
    )
    before, after = (answers(bench, m.path, bench.data.validation, m.plan).mean() for m in (rounded, trained))
    assert before < after > 0.95


def test_a_plan_says_how_much_of_its_training_is_quantised(bench: Bench, tmp_path: Path) -> None:
    low = plan(dict.fromkeys(LAYERS, Precision.W4A8), steps=12)
    start, made_of = bench.base.state_dict(), {}
    for fraction in (0.0, None, 1.0):
        training = low.training.model_copy(update={"quantized_fraction": fraction})
        made = Made(bench, low.model_copy(update={"training": training}), tmp_path / str(fraction))
        moved = any(not torch.equal(value, start[name]) for name, value in load_file(made.checkpoint).items())
        made_of[fraction] = (moved, made.bytes)
    # the checkpoint is that of the float phase: where all steps are quantised, the start's
    assert [moved for moved, _ in made_of.values()] == [True, True, False]
    assert len({file for _, file in made_of.values()}) == 3


def test_nothing_half_written_stays(mixed: Made) -> None:
    assert sorted(entry.name for entry in mixed.path.parent.iterdir()) == ["model.onnx", "weights.safetensors"]


# Before and after the training


def test_a_draft_of_weights_has_the_final_size(float32: Made, weight_only: Made) -> None:
    for each in (float32, weight_only):
        assert len(each.draft_bytes) == len(each.bytes)
        assert each.draft_bytes != each.bytes


@pytest.mark.parametrize("name", ["mixed", "int8"])
def test_a_draft_with_activations_has_the_final_size_but_for_zero_points(
    name: str, request: pytest.FixtureRequest
) -> None:
    made: Made = request.getfixturevalue(name)
    distinct = {int(value) for key, value in made.deployable.named_buffers() if key.endswith("zero_point")}
    # equal zero points are stored once, a dozen bytes each
    assert 0 <= len(made.bytes) - len(made.draft_bytes) <= 16 * len(distinct)


@pytest.mark.parametrize("name", ["mixed", "int8", "float32"])
def test_a_draft_runs_on_the_final_kernels(name: str, request: pytest.FixtureRequest) -> None:
    made: Made = request.getfixturevalue(name)
    assert made.draft_operators == count_fused(made.path)


def random_plan(seed: int, network: nn.Module, data: TaskData) -> Plan:
    draw = random.Random(seed)
    analysis = analyse(network, data.example_inputs(2), with_blocks=False)
    return plan(
        {layer.name: draw.choice(list(Precision)).for_layer(layer.kind) for layer in analysis.layers},
        steps=0,
        pruning=PruningSpec(ratios={group.name: draw.choice([0.0, 0.25, 0.5, 0.9]) for group in analysis.groups}),
    )


@pytest.mark.parametrize("seed", range(2))
def test_no_file_is_smaller_than_its_packed_weights(seed: int, bench: Bench, tmp_path: Path) -> None:
    some = random_plan(seed, bench.base, bench.data)
    network = build_network(bench, some)
    draft(bench, network, some, tmp_path / "model.onnx", StageClock())
    least, size = least_size_bytes(network, some), (tmp_path / "model.onnx").stat().st_size
    assert least <= size < least + 12_000  # and the rest is scales, biases and the graph


def test_the_least_size_counts_bits() -> None:
    network = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2))
    some = plan({"0": Precision.W3A8, "1": Precision.FLOAT32})
    assert least_size_bytes(network, some) == 32 * 3 // 8 + 8 * 4
    assert least_size_bytes(network, plan({})) == 0  # what no plan names need not be in the file


# Training and its failures


def test_training_on_goes_from_the_checkpoint(mixed: Made) -> None:
    from safetensors.torch import load_file

    state = load_file(mixed.checkpoint)
    expected = mixed.network.state_dict()
    assert state.keys() == expected.keys()
    # saved between the two phases: later training works on a folded copy
    assert all(torch.equal(value, expected[name]) for name, value in state.items())


def test_the_plan_trains_for_its_steps(bench: Bench, tmp_path: Path) -> None:
    entered = []

    class Guard:
        def __enter__(self) -> None:
            entered.append(1)

        def __exit__(self, *_: object) -> None:
            pass

    guarded = replace(bench, each_batch=Guard)
    some = plan(dict.fromkeys(LAYERS, EIGHT_BITS), steps=9)
    unfinished = draft(guarded, build_network(guarded, some), some, tmp_path / "model.onnx", StageClock())
    assert entered == []
    finish(guarded, unfinished, some, tmp_path / "model.onnx", tmp_path / "weights", StageClock())
    assert len(entered) == 9 + 1  # and one batch of calibration


def test_a_diverged_training_fails_the_trial(bench: Bench, tmp_path: Path) -> None:
    wild = replace(bench, training=bench.training.model_copy(update={"learning_rate": 1e38}))
    with pytest.raises(TrialFailed) as failure:
        Made(wild, plan(dict.fromkeys(LAYERS, Precision.FLOAT32)), tmp_path)
    assert failure.value.kind == "training"


def test_the_stages_are_timed(mixed: Made) -> None:
    assert mixed.clock.seconds.keys() == {"export", "train", "teach", "calibrate"}
    assert all(seconds > 0 for stage, seconds in mixed.clock.seconds.items() if stage != "teach")


def test_the_teachers_answers_are_a_stage_of_their_own_and_known_the_second_time(
    trained: nn.Module, digits: TaskData, tmp_path: Path
) -> None:
    fresh, some = make_bench(trained, digits), plan(dict.fromkeys(LAYERS, EIGHT_BITS))
    assert fresh.teacher is not None
    clocks = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        clocks.append(Made(fresh, some, tmp_path / str(number)).clock)
    assert fresh.teacher.seconds > 0
    assert clocks[0].seconds["teach"] == pytest.approx(fresh.teacher.seconds)
    assert clocks[1].seconds["teach"] == 0


def test_a_teacher_without_batch_norms_says_what_the_base_says(trained: nn.Module, digits: TaskData) -> None:
    fast = faster_teacher(trained, digits)
    assert fast is not None
    whole = trace(trained, digits.example_inputs(2))
    called, left = ({n.target for n in g.graph.nodes if n.op == "call_function"} for g in (whole, fast))
    assert called - left == {torch.ops.aten.batch_norm.default}
    before = copy.deepcopy(trained.state_dict())
    indices = torch.arange(40)
    inputs = digits.training_inputs(indices, 1)
    own, folded = (
        Teacher(trained, digits, 2, Acceleration(), fast=f).outputs(indices, 1, inputs) for f in (None, fast)
    )
    for one, other in zip(own, folded, strict=True):
        assert one.shape[1] > 0
        torch.testing.assert_close(one, other, rtol=5e-3, atol=5e-3)  # remembered in float16
    assert all(torch.equal(before[name], value) for name, value in trained.state_dict().items())
    assert faster_teacher(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), digits) is None


@pytest.mark.parametrize(
    "parts",
    [
        {"architecture": ArchitectureSpec(dropped_blocks=("stage9.0",))},
        {"pruning": PruningSpec(ratios={"stage9.conv": 0.5})},
        {
            "pruning": PruningSpec(ratios={"stage1.0.conv1": 0.5}),
            "architecture": ArchitectureSpec(dropped_blocks=("stage1.0",)),
        },
    ],
)
def test_a_plan_for_another_network_is_refused(bench: Bench, parts: dict[str, Any]) -> None:
    with pytest.raises((KeyError, AttributeError)):
        build_network(bench, plan({}, **parts))


def test_a_precision_of_an_unknown_layer_is_refused(bench: Bench, tmp_path: Path) -> None:
    some = plan({"stage9.conv": EIGHT_BITS})
    with pytest.raises(KeyError, match="stage9"):
        draft(bench, build_network(bench, some), some, tmp_path / "model.onnx", StageClock())
