"""The losses are those of the papers, the teacher answers each view once, and training trains."""

from __future__ import annotations

import contextlib
import copy
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor, nn

from autocompress.compression import distillation
from autocompress.compression.distillation import (
    Acceleration,
    Schedule,
    Teacher,
    captured_features,
    classifier_width,
    distillation_loss,
    fastest_acceleration,
    hint_loss,
    index_stream,
    mark_features_,
    seconds_per_step_,
    train_,
    worthwhile_views,
)
from autocompress.compression.quantization import attach_weight_quantizers_
from autocompress.data.task import Split, TaskData
from autocompress.errors import TrialFailed
from autocompress.layers import classifier_name, trace, weight_layers
from autocompress.plan import DistillationSpec, Precision

SCHEDULE = Schedule(steps=40, learning_rate=0.2, batch_size=32, weight_decay=1e-4, seed=3)


def logits(seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return 2.0 * torch.randn(6, 5, generator=torch.Generator().manual_seed(seed), dtype=dtype)


LONG = replace(SCHEDULE, steps=300)
LABELS = torch.tensor([0, 4, 2, 2, 1, 3])


# The losses


@given(st.floats(0.0, 1.0), st.floats(0.5, 20.0), st.integers(0, 100))
def test_loss_equals_the_sum_written_out(alpha: float, temperature: float, seed: int) -> None:
    student, teacher = logits(seed), logits(seed + 1)
    log_p = log_softmax(teacher.numpy() / temperature, axis=1)
    log_q = log_softmax(student.numpy() / temperature, axis=1)
    divergence = (np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()
    hard = -log_softmax(student.numpy(), axis=1)[np.arange(6), LABELS.numpy()].mean()
    expected = (1 - alpha) * hard + alpha * temperature**2 * divergence
    loss = distillation_loss(student, teacher, LABELS, DistillationSpec(alpha=alpha, temperature=temperature))
    assert float(loss) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_alpha_zero_is_cross_entropy_in_value_and_gradient() -> None:
    ours, plain = logits(0).requires_grad_(), logits(0).requires_grad_()
    distillation_loss(ours, logits(1), LABELS, DistillationSpec(alpha=0.0)).backward()
    F.cross_entropy(plain, LABELS).backward()
    torch.testing.assert_close(ours.grad, plain.grad)


def test_alpha_one_does_not_read_the_labels_and_is_zero_at_the_teacher() -> None:
    spec = DistillationSpec(alpha=1.0, temperature=3.0)
    assert distillation_loss(logits(0), logits(1), LABELS, spec) == distillation_loss(
        logits(0), logits(1), LABELS.flip(0), spec
    )
    assert float(distillation_loss(logits(0), logits(0), LABELS, spec)) == pytest.approx(0.0, abs=1e-12)
    assert float(distillation_loss(logits(0), logits(1), LABELS, spec)) > 0.1


def test_gradient_at_a_high_temperature_matches_the_logits() -> None:
    # Hinton et al. 2015, equation 4: (z - v) / (N T^2) for logits of zero mean, times the T^2 of the loss
    student, teacher = (x - x.mean(dim=1, keepdim=True) for x in (logits(0), logits(1)))
    student.requires_grad_()
    distillation_loss(student, teacher, LABELS, DistillationSpec(alpha=1.0, temperature=1e4)).backward()
    expected = (student.detach() - teacher) / 5 / len(student)
    torch.testing.assert_close(student.grad, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_gradient_equals_finite_differences(temperature: float) -> None:
    spec = DistillationSpec(alpha=0.4, temperature=temperature)
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, logits(1), LABELS, spec), logits(0).requires_grad_())


def test_hint_is_zero_at_equality_and_one_for_a_constant_guess() -> None:
    features = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert float(hint_loss(features, features, nn.Identity())) == 0.0
    guess = torch.full_like(features, float(features.mean()))
    assert float(hint_loss(guess, features, nn.Identity())) == pytest.approx(1 - 1 / features.numel(), rel=1e-4)
    # in units of the teacher's variance, so one weight suits every teacher
    assert hint_loss(3 * guess, 3 * features, nn.Identity()) == pytest.approx(
        float(hint_loss(guess, features, nn.Identity()))
    )


def test_hint_regresses_the_mean_over_positions() -> None:
    student, teacher = torch.randn(4, 2, 3), torch.randn(4, 5)
    regressor = nn.Linear(3, 5)
    expected = (regressor(student.mean(dim=1)) - teacher).square().mean() / teacher.var()
    assert hint_loss(student, teacher, regressor).item() == pytest.approx(expected.item(), rel=1e-5)


@given(st.floats(0.0, 1.0), st.integers(0, 50))
def test_a_loss_of_its_own_takes_the_place_of_both_terms(alpha: float, seed: int) -> None:
    student, teacher, targets = (
        torch.randn(6, 3, generator=torch.Generator().manual_seed(seed + n), dtype=torch.float64) for n in range(3)
    )
    spec = DistillationSpec(alpha=alpha, temperature=3.0)
    expected = (1 - alpha) * (student - targets).abs().mean() + alpha * (
        student - teacher
    ).square().mean() / teacher.var()
    found = distillation_loss(student, teacher, targets, spec, loss=lambda y, t: (y - t).abs().mean())
    assert float(found) == pytest.approx(float(expected), rel=1e-9)


# A small problem: two classes in the plane, and views that shift


def ring(count: int, seed: int) -> Split:
    """Points inside and outside of a circle."""
    points = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return Split((points,), (points.norm(dim=1) > 0.75).long())


def ring_task(rows: int = 96) -> TaskData:
    """View v adds v hundredths to the points."""
    train = ring(rows, 0)
    return TaskData(
        train=train, calibration=train.take(torch.arange(32)), validation=ring(50, 1), test=ring(50, 2),
        class_names=("in", "out"), input_names=("point",), preprocessing={},
        prepare=lambda inputs: inputs, augment=lambda inputs, indices, view: (inputs[0] + 0.01 * view,),
    )  # fmt: skip


class Counting(nn.Module):
    """A network that remembers the rows of each batch it has seen."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.ReLU())
        self.head = nn.Linear(width, 2)
        self.batches: list[list[tuple[float, ...]]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.batches.append([tuple(row) for row in x.tolist()])
        return self.head(self.body(x))


def network(seed: int = 0, width: int = 16) -> Counting:
    torch.manual_seed(seed)
    return Counting(width)


def accuracy(model: nn.Module, split: Split) -> float:
    with torch.no_grad():
        return float((model(*split.inputs).argmax(dim=1) == split.labels).float().mean())


# The teacher


def test_who_learns_from_labels_alone_does_not_ask_the_teacher() -> None:
    data, students = ring_task(), [network(1), network(1)]
    teacher = Teacher(network(2), data, views=1, acceleration=Acceleration())
    train_(students[0], data, teacher, DistillationSpec(alpha=0.0), SCHEDULE, views=1)
    assert teacher.seconds == 0.0
    train_(students[1], data, None, DistillationSpec(), SCHEDULE, views=1)
    for mine, other in zip(students[0].parameters(), students[1].parameters(), strict=True):
        assert torch.equal(mine, other)
    assert DistillationSpec(alpha=0.0, hint_weight=0.1).asks_teacher and DistillationSpec().asks_teacher


def test_the_teacher_answers_each_example_and_view_once() -> None:
    data, model = ring_task(), network()
    teacher = Teacher(model, data, views=3, acceleration=Acceleration())
    model.batches.clear()
    generator = torch.Generator().manual_seed(0)
    asked: set[tuple[int, int]] = set()
    for turn in range(20):
        indices, view = torch.randperm(96, generator=generator)[:17], turn % 3
        inputs = data.training_inputs(indices, view)
        found = teacher.outputs(indices, view, inputs)
        asked |= {(int(index), view) for index in indices}
        seen = [row for batch in model.batches for row in set(batch)]
        assert len(seen) == len(set(seen)) == len(asked)
        with torch.no_grad():
            features = model.body(*inputs)
            torch.testing.assert_close(found[0], model.head(features), rtol=2e-3, atol=1e-3)  # float16
            torch.testing.assert_close(found[1], features, rtol=2e-3, atol=1e-3)
    assert len(asked) > 150


def test_what_was_remembered_is_what_was_said_first() -> None:
    data = ring_task()
    teacher = Teacher(network(), data, views=2, acceleration=Acceleration())
    indices = torch.tensor([5, 90, 17, 33])
    first = teacher.outputs(indices, 1, data.training_inputs(indices, 1))
    order = torch.tensor([2, 0, 3, 1])
    again = teacher.outputs(indices[order], 1, data.training_inputs(indices[order], 1))
    assert all(torch.equal(b, a[order]) for a, b in zip(first, again, strict=True))
    other_view = teacher.outputs(indices, 0, data.training_inputs(indices, 0))
    assert not torch.equal(other_view[0], first[0])


def test_an_answer_does_not_depend_on_what_is_asked_with_it(digits: TaskData, trained: nn.Module) -> None:
    """Else a plan's file would depend on the trials before it."""
    indices = torch.arange(24)
    inputs = digits.training_inputs(indices, 0)
    whole = Teacher(trained, digits, views=1, acceleration=Acceleration()).outputs(indices, 0, inputs)
    piecewise = Teacher(trained, digits, views=1, acceleration=Acceleration())
    for part in (indices[3:4], indices[9:14], indices[:23], indices):
        found = piecewise.outputs(part, 0, tuple(x[part] for x in inputs))
    assert all(torch.equal(a, b) for a, b in zip(whole, found, strict=True))


def test_a_table_that_is_too_large_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "CACHE_LIMIT_BYTES", 96 * 18 * 2 * 2 - 1)
    data, model = ring_task(), network()
    teacher = Teacher(model, data, views=2, acceleration=Acceleration())
    model.batches.clear()
    indices = torch.arange(10)
    for _ in range(3):
        found, _ = teacher.outputs(indices, 0, data.training_inputs(indices, 0))
    assert [len(batch) for batch in model.batches] == [10, 10, 10]
    with torch.no_grad():
        assert torch.equal(found, model(*data.training_inputs(indices, 0)))


def test_a_faster_form_answers_in_the_teachers_place() -> None:
    data, model, fast = ring_task(), network(), network()
    teacher = Teacher(model, data, views=1, acceleration=Acceleration(), fast=fast)
    model.batches.clear()
    indices = torch.arange(24)
    inputs = data.training_inputs(indices, 0)
    found, features = teacher.outputs(indices, 0, inputs)
    assert not model.batches and len(fast.batches[-1]) == 24
    with torch.no_grad():
        torch.testing.assert_close(features, model.body(*inputs), rtol=2e-3, atol=1e-3)  # float16
        torch.testing.assert_close(found, model(*inputs), rtol=2e-3, atol=1e-3)


def test_a_teacher_knows_how_long_it_keeps_a_training_waiting() -> None:
    data = ring_task()
    rows = len(data.train)
    teacher = Teacher(network(), data, views=2, acceleration=Acceleration())
    assert teacher.expected_seconds(1, rows) == 0.0  # nothing was timed yet
    teacher.outputs(torch.arange(32), 0, data.training_inputs(torch.arange(32), 0))
    each = teacher.seconds / 32
    assert teacher.expected_seconds(1, 10**6) == pytest.approx(each * (rows - 32))
    assert teacher.expected_seconds(2, 10**6) == pytest.approx(each * (2 * rows - 32))
    assert teacher.expected_seconds(1, 20) == pytest.approx(each * 20)
    before = teacher.seconds
    teacher.outputs(torch.arange(32), 0, data.training_inputs(torch.arange(32), 0))
    assert teacher.seconds == before  # known by now


@pytest.mark.parametrize(("epochs", "expected"), [(0.5, 1), (4.0, 1), (4.1, 2), (12.0, 3), (100.0, 8)])
def test_each_view_is_seen_four_times(epochs: float, expected: int) -> None:
    assert worthwhile_views(8, epochs) == expected
    assert worthwhile_views(1, epochs) == 1


def test_a_network_without_a_linear_layer_has_no_features() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten())
    data = replace(ring_task(), prepare=lambda inputs: (inputs[0][:, None],))
    teacher = Teacher(model, data, views=1, acceleration=Acceleration())
    found, features = teacher.outputs(torch.arange(4), 0, data.training_inputs(torch.arange(4), 0))
    assert found.shape == (4, 2)
    assert features.shape == (4, 0)
    assert teacher.feature_width == 0


def test_captured_features_are_the_classifier_input_and_the_hook_goes() -> None:
    model, x = network(), torch.randn(3, 2)
    with captured_features(model) as features:
        model(x)
    assert torch.equal(features[0], model.body(x))
    assert len(features) == 1


def test_the_features_of_a_graph_are_what_enters_the_layer_that_is_marked() -> None:
    model, x = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3)).eval(), torch.randn(4, 2)
    graph = trace(model, (x,))
    with captured_features(graph) as features:
        graph(x)
    assert features == [] and classifier_width(graph) == 0
    mark_features_(graph, classifier_name(model))
    with captured_features(graph) as features, torch.no_grad():
        torch.testing.assert_close(graph(x), model(x))
        assert torch.equal(features[0], model[:2](x))
    assert classifier_width(graph) == classifier_width(model) == 5


def test_a_graph_without_the_layer_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Flatten()).eval()
    graph = trace(model, (torch.randn(2, 1, 4),))
    mark_features_(graph, classifier_name(model))
    assert classifier_width(graph) == 0


# The order of examples


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 5), st.integers(0, 2000))
def test_an_epoch_shows_an_example_once_under_one_view(rows: int, batch_size: int, views: int, seed: int) -> None:
    per_epoch = rows // min(batch_size, rows)
    stream = index_stream(rows, batch_size, views, seed)
    seen_views = []
    for _ in range(views):
        epoch = list(itertools.islice(stream, per_epoch))
        indices = torch.cat([indices for indices, _ in epoch])
        assert len(set(indices.tolist())) == len(indices) == per_epoch * min(batch_size, rows)
        assert int(indices.min()) >= 0 and int(indices.max()) < rows
        assert len({view for _, view in epoch}) == 1
        seen_views.append(epoch[0][1])
    assert sorted(seen_views) == list(range(views))


def test_a_stream_follows_from_its_seed_and_a_continued_one_begins_elsewhere() -> None:
    def first_epochs(seed: int) -> list[list[int]]:
        return [indices.tolist() for indices, _ in itertools.islice(index_stream(64, 16, 4, seed), 8)]

    assert first_epochs(7) == first_epochs(7)
    assert first_epochs(7) != first_epochs(1007)
    for epoch in (first_epochs(7)[:4], first_epochs(1007)[4:]):
        assert sorted(itertools.chain.from_iterable(epoch)) == list(range(64))


@given(st.integers(1, 90), st.integers(1, 9), st.integers(0, 500))
def test_batches_are_of_like_length_and_an_epoch_still_shows_an_example_once(
    rows: int, batch_size: int, seed: int
) -> None:
    lengths = torch.randint(1, 40, (rows,), generator=torch.Generator().manual_seed(seed))
    per_epoch = rows // min(batch_size, rows)
    stream = index_stream(rows, batch_size, 2, seed, lengths)
    for _ in range(2):
        epoch = [indices for indices, _ in itertools.islice(stream, per_epoch)]
        seen = torch.cat(epoch).tolist()
        assert len(set(seen)) == len(seen) == per_epoch * min(batch_size, rows)
    # as long as one stretch holds the epoch, the batches do not overlap in length
    if rows <= distillation.BATCHES_OF_LIKE_LENGTH * batch_size:
        spans = sorted((int(lengths[indices].min()), int(lengths[indices].max())) for indices in epoch)
        assert all(high <= low for (_, high), (low, _) in itertools.pairwise(spans))


def test_batches_of_like_length_come_in_any_order_and_padding_shrinks() -> None:
    lengths = torch.randint(1, 100, (3200,), generator=torch.Generator().manual_seed(0))

    def first_epoch(lengths_given: Tensor | None) -> list[Tensor]:
        return [indices for indices, _ in itertools.islice(index_stream(3200, 16, 1, 5, lengths_given), 200)]

    def padded(epoch: list[Tensor]) -> int:
        return sum(len(indices) * int(lengths[indices].max()) for indices in epoch)

    least = int(lengths.sum())
    assert padded(first_epoch(lengths)) - least < 0.1 * (padded(first_epoch(None)) - least)
    longest = torch.tensor([float(lengths[indices].max()) for indices in first_epoch(lengths)])
    assert abs(float(torch.corrcoef(torch.stack([longest, torch.arange(200.0)]))[0, 1])) < 0.3
    assert [i.tolist() for i in first_epoch(lengths)] == [i.tolist() for i in first_epoch(lengths)]


# Training


@pytest.mark.parametrize("spec", [None, DistillationSpec(alpha=0.7), DistillationSpec(alpha=0.5, hint_weight=0.5)])
def test_training_learns(spec: DistillationSpec | None) -> None:
    data, student = ring_task(), network(1, width=24)
    teacher = None
    if spec is not None:
        best = network(2)
        train_(best, data, None, DistillationSpec(), LONG, views=2)
        teacher = Teacher(best, data, views=2, acceleration=Acceleration())
    before = F.cross_entropy(student(*data.train.inputs), data.train.labels).item()
    train_(student, data, teacher, spec or DistillationSpec(), LONG, views=2)
    after = F.cross_entropy(student(*data.train.inputs), data.train.labels).item()
    assert after < 0.6 * before
    assert accuracy(student, data.validation) > 0.85
    assert not student.training


def test_a_student_of_the_teacher_alone_learns_what_the_teacher_says() -> None:
    data = ring_task()
    wrong = replace(data, train=replace(data.train, labels=1 - data.train.labels))
    best, student = network(2), network(1)
    train_(best, data, None, DistillationSpec(), LONG, views=2)
    teacher = Teacher(best, data, views=2, acceleration=Acceleration())
    train_(student, wrong, teacher, DistillationSpec(alpha=1.0), LONG, views=2)
    assert accuracy(student, data.validation) > 0.85


def test_the_hint_moves_features_towards_the_teacher() -> None:
    data, best = ring_task(), network(2)
    train_(best, data, None, DistillationSpec(), LONG, views=2)
    teacher = Teacher(best, data, views=2, acceleration=Acceleration())

    def unexplained(hint_weight: float, seed: int) -> float:
        """Share of the teacher's features that no linear map of the student's explains."""
        student = network(seed, width=4)
        student.body[1] = nn.Tanh()  # of four rectifiers one or two die, by the seed's luck
        spec = DistillationSpec(alpha=0.5, hint_weight=hint_weight)
        train_(student, data, teacher, spec, replace(LONG, learning_rate=0.1), views=2)
        with torch.no_grad():
            own, theirs = (model.body(*data.train.inputs) for model in (student, best))
        own = torch.cat([own, torch.ones(len(own), 1)], dim=1)
        residual = theirs - own @ torch.linalg.lstsq(own, theirs).solution
        return float(residual.square().mean() / theirs.var())

    assert sum(unexplained(4.0, seed) for seed in range(3)) < 0.75 * sum(unexplained(0.0, seed) for seed in range(3))


class Curve(nn.Module):
    """One number for a point; outputs of any shape will do."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(2, width), nn.Tanh()), nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)).squeeze(-1)


def curve_task() -> TaskData:
    """Targets are numbers: the hyperbolic tangent of twice the first coordinate."""
    data = ring_task()
    splits = {n: getattr(data, n) for n in ("train", "calibration", "validation", "test")}
    numbers = {n: replace(s, labels=torch.tanh(2 * s.inputs[0][:, 0])) for n, s in splits.items()}
    return replace(data, **numbers, class_names=(), loss=F.mse_loss, metric=lambda y, t: -float(F.mse_loss(y, t)))


def test_numbers_are_learned_by_the_loss_of_the_task_and_from_a_teacher() -> None:
    data = curve_task()

    def error(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(*data.validation.inputs), data.validation.labels))

    torch.manual_seed(0)
    best, student = Curve(), Curve(8)
    long = replace(LONG, optimizer="adamw", learning_rate=0.02)
    train_(best, data, None, DistillationSpec(), long, views=1)
    assert error(best) < 0.1 * float(data.validation.labels.var())
    teacher = Teacher(best, data, views=1, acceleration=Acceleration())
    rows = torch.arange(5)
    found, features = teacher.outputs(rows, 0, data.training_inputs(rows, 0))
    assert found.shape == (5,) and features.shape == (5, 24)
    # what the teacher says is enough, wrong targets or not
    wrong = replace(data, train=replace(data.train, labels=-data.train.labels))
    train_(student, wrong, teacher, DistillationSpec(alpha=1.0, hint_weight=0.1), long, views=1)
    assert error(student) < 0.2 * float(data.validation.labels.var())


def test_adamw_trains_too() -> None:
    data, student = ring_task(), network(1, width=24)
    adamw = replace(LONG, optimizer="adamw", learning_rate=0.02)
    train_(student, data, None, DistillationSpec(), adamw, views=2)
    assert accuracy(student, data.validation) > 0.85


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weights_alone_are_decayed(optimizer: Literal["sgd", "adamw"]) -> None:
    data, student = replace(ring_task(), loss=lambda outputs, _targets: 0.0 * outputs.sum()), network(1)
    before = copy.deepcopy(student.state_dict())
    train_(student, data, None, DistillationSpec(), replace(SCHEDULE, optimizer=optimizer, weight_decay=0.3), views=2)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]) == name.endswith("bias")
        assert value.norm() <= before[name].norm()


def test_under_adamw_the_steps_of_grids_move_less_than_weights() -> None:
    """Adam moves each parameter by the rate, whatever its size, and steps are small."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))
    graph = trace(model.eval(), (torch.randn(3, 2),))
    attach_weight_quantizers_(graph, dict.fromkeys(weight_layers(graph), Precision.W4))
    before = {name: parameter.detach().clone() for name, parameter in graph.named_parameters()}
    schedule = replace(SCHEDULE, steps=1, optimizer="adamw", weight_decay=0.0, learning_rate=0.1)
    train_(graph, ring_task(), None, DistillationSpec(), schedule, views=2)
    moved = {name: float((p.detach() - before[name]).abs().max()) for name, p in graph.named_parameters()}
    steps = [amount for name, amount in moved.items() if name.endswith(".step")]
    others = [amount for name, amount in moved.items() if not name.endswith(".step")]
    assert len(steps) == 2 and len(others) == 4
    assert max(steps) == pytest.approx(max(others) * distillation.STEP_RATE, rel=1e-2)


def test_what_needs_no_gradient_is_not_trained() -> None:
    student = network(1)
    student.body[0].weight.requires_grad_(False)
    before = copy.deepcopy(student.state_dict())
    train_(student, ring_task(), None, DistillationSpec(), replace(SCHEDULE, steps=3), views=2)
    same = {name for name, value in student.state_dict().items() if torch.equal(value, before[name])}
    assert same == {"body.0.weight"}


def test_training_follows_from_its_seed() -> None:
    def weights(seed: int, state: int) -> list[Tensor]:
        data, student = ring_task(), network(1)
        teacher = Teacher(network(2), data, views=2, acceleration=Acceleration())
        torch.manual_seed(state)  # what was drawn before must not matter
        train_(
            student, data, teacher, DistillationSpec(hint_weight=0.3), replace(SCHEDULE, seed=seed, steps=9), views=2
        )
        return list(student.parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(3, 0), weights(3, 99), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(weights(3, 0), weights(4, 0), strict=True))


def test_no_steps_change_nothing() -> None:
    student = network(1)
    before = copy.deepcopy(student.state_dict())
    train_(student, ring_task(), None, DistillationSpec(), replace(SCHEDULE, steps=0), views=2)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_every_number_of_steps_is_done_and_guarded(steps: int) -> None:
    entered = []

    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        entered.append("in")
        yield
        entered.append("out")

    student = network(1)
    before = copy.deepcopy(student.state_dict())
    train_(student, ring_task(), None, DistillationSpec(), replace(SCHEDULE, steps=steps, each_batch=guard), views=2)
    assert entered == ["in", "out"] * steps
    assert [len(batch) for batch in student.batches] == [32] * steps
    assert not torch.equal(student.head.weight, before["head.weight"])


def test_a_loss_that_is_not_finite_fails_the_trial() -> None:
    with pytest.raises(TrialFailed, match=r"finite.*learning rate") as failure:
        train_(network(1), ring_task(), None, DistillationSpec(), replace(SCHEDULE, learning_rate=1e38), views=2)
    assert failure.value.kind == "training"


# Speed modes


@pytest.mark.parametrize("mode", [Acceleration(True, False), Acceleration(False, True), Acceleration(True, True)])
def test_modes_train_like_plain_float32(mode: Acceleration, digits: TaskData, trained: nn.Module) -> None:
    teacher = Teacher(trained, digits, views=1, acceleration=mode)
    rows = torch.arange(64)
    plain, quick = copy.deepcopy(trained), copy.deepcopy(trained)
    schedule = Schedule(steps=2, learning_rate=0.01, batch_size=32, weight_decay=0.0, seed=0)
    train_(plain, digits, teacher, DistillationSpec(), schedule, views=1)
    train_(quick, digits, teacher, DistillationSpec(), replace(schedule, acceleration=mode), views=1)
    with torch.no_grad():
        expected, found = (model(*digits.training_inputs(rows, 0)) for model in (plain, quick))
    tolerance = 0.05 if mode.bfloat16 else 1e-3
    assert float((found - expected).abs().max() / expected.abs().max()) < tolerance


class Slow(nn.Module):
    """A network whose every forward pass takes a known time at least, and the first one much longer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.passes = network, 0

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(0.02 if self.passes else 3.0)
        self.passes += 1
        return self.network(x)  # type: ignore[no-any-return]


class SlowTeacher(Teacher):
    """Answers that are not known yet take long."""

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        time.sleep(2.0)
        return super()._run(inputs)


@pytest.mark.parametrize("remembers", [True, False])
def test_a_step_is_timed_with_all_that_it_has_to_do_each_time_and_nothing_else(
    remembers: bool, digits: TaskData, trained: nn.Module
) -> None:
    waits = []

    @contextlib.contextmanager
    def guard() -> Iterator[None]:
        waits.append(time.sleep(2.0))
        yield

    student = Slow(copy.deepcopy(trained))
    teacher = SlowTeacher(trained, digits, views=1, acceleration=Acceleration())
    teacher.remembers = remembers
    schedule = Schedule(steps=2, learning_rate=1e30, batch_size=32, weight_decay=0.0, seed=0, each_batch=guard)
    seconds = seconds_per_step_(student, digits, schedule, teacher, DistillationSpec(alpha=0.9))
    assert len(waits) == student.passes == 3  # the first warms up
    if remembers:
        assert 0.02 <= seconds < 1.5
    else:
        assert 2.02 <= seconds < 3.5  # the teacher is asked in every step
    before = dict(trained.named_parameters())
    assert all(torch.allclose(value, before[name], atol=1e-6) for name, value in student.network.named_parameters())


def test_the_fastest_mode_is_found_on_a_copy(digits: TaskData, trained: nn.Module) -> None:
    before = copy.deepcopy(trained.state_dict())
    schedule = Schedule(steps=500, learning_rate=0.1, batch_size=32, weight_decay=0.0, seed=0)
    assert isinstance(fastest_acceleration(trained, digits, schedule), Acceleration)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert not trained.training
