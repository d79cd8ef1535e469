"""Hidden states and relations are those of the papers, and are learned whatever the widths."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import Tensor, nn

from autocompress.compression.architecture import drop_blocks
from autocompress.compression.distillation import Acceleration, Schedule, Teacher, train_
from autocompress.compression.inner_widths import find_inner_widths, without_units_
from autocompress.compression.intermediate import (
    Captured,
    Points,
    captured,
    counterparts,
    hidden_loss,
    relation_loss,
    width_key,
)
from autocompress.data.task import Split, TaskData
from autocompress.layers import trace
from autocompress.plan import DistillationSpec


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Counterparts


def test_a_kept_block_answers_for_the_missing_ones_after_it() -> None:
    assert counterparts(["b1", "b2", "b5"], ["b0", "b1", "b2", "b3", "b4", "b5", "b6"]) == {
        "b1": "b1", "b2": "b4", "b5": "b6"
    }  # fmt: skip
    assert counterparts(["b0"], ["b0", "b1", "b2"]) == {"b0": "b2"}


@given(st.data())
def test_a_whole_student_meets_each_block_and_the_last_output_always_counts(data: st.DataObject) -> None:
    names = [f"b{n}" for n in range(data.draw(st.integers(1, 9)))]
    assert counterparts(names, names) == {name: name for name in names}
    kept = sorted(data.draw(st.sets(st.sampled_from(names), min_size=1)))
    pairs = counterparts(kept, names)
    assert list(pairs) == kept and pairs[kept[-1]] == names[-1]
    assert list(pairs.values()) == sorted(set(pairs.values()))
    assert all(own <= other for own, other in pairs.items())


# The losses


def states(*tensors: Tensor) -> Captured:
    return Captured({f"b{n}": tensor for n, tensor in enumerate(tensors)}, [])


def test_hidden_loss_is_zero_for_itself_and_one_for_a_constant_guess() -> None:
    teacher = states(gaussian(4, 5, 8), 3 * gaussian(4, 5, 8, seed=1) + 2)
    pairs = {"b0": "b0", "b1": "b1"}
    assert float(hidden_loss(teacher, teacher, pairs)) == 0.0
    guess = states(*(torch.full_like(x, float(x.mean())) for x in teacher.blocks.values()))
    assert float(hidden_loss(guess, teacher, pairs)) == pytest.approx(1 - 1 / 160, rel=1e-3)


def test_hidden_loss_is_the_mean_over_the_pairs() -> None:
    a, b, c = (gaussian(4, 5, 8, seed=n) for n in range(3))
    teacher, student = states(a, b, c), states(c, a)
    expected = np.mean([float((mine - other).square().mean() / other.var()) for mine, other in ((c, b), (a, c))])
    assert float(hidden_loss(student, teacher, {"b0": "b1", "b1": "b2"})) == pytest.approx(expected, rel=1e-5)


def test_a_regressor_maps_a_narrow_student() -> None:
    torch.manual_seed(0)
    teacher, student = states(torch.randn(4, 5, 8)), states(torch.randn(4, 5, 3))
    regressor = nn.Linear(3, 8)
    loss = hidden_loss(student, teacher, {"b0": "b0"}, nn.ModuleDict({width_key("b0"): regressor}))
    own, other = student.blocks["b0"], teacher.blocks["b0"]
    assert loss.item() == pytest.approx(
        float((regressor(own).detach() - other).square().mean() / other.var()), rel=1e-5
    )
    loss.backward()
    assert regressor.weight.grad is not None


def test_names_of_blocks_are_keys_of_module_dictionaries() -> None:
    assert nn.ModuleDict({width_key("body.layer.3"): nn.Identity()})
    assert width_key("a.b") != width_key("a.b.c") != width_key("a_b.c")


def relations(x: Tensor, heads: int) -> np.ndarray:
    """Wang et al. 2021, equation 3, written out: log softmax(A A^T / sqrt(d)) of each head."""
    size = x.shape[-1] // heads
    scaled = [x[..., h * size : (h + 1) * size].numpy() for h in range(heads)]
    return np.stack([log_softmax(a @ a.swapaxes(-1, -2) / math.sqrt(size), axis=-1) for a in scaled], axis=1)


@given(st.integers(0, 50), st.sampled_from([(12, 12, 12), (12, 24, 12), (24, 36, 12), (10, 15, 5), (7, 9, 1)]))
def test_relation_loss_equals_the_divergence_written_out(seed: int, widths: tuple[int, int, int]) -> None:
    own_width, other_width, heads = widths
    student = [gaussian(2, 5, own_width, seed=seed + n) for n in range(3)]
    teacher = [gaussian(2, 5, other_width, seed=seed + 9 + n) for n in range(3)]
    expected = []
    for own, other in zip(student, teacher, strict=True):
        p, q = relations(other, heads), relations(own, heads)
        expected.append((np.exp(p) * (p - q)).sum(axis=-1).mean())
    assert float(relation_loss(student, teacher)) == pytest.approx(np.mean(expected), rel=1e-4)


@given(st.integers(0, 200), st.sampled_from([4, 6, 12, 18]))
def test_relations_diverge_from_all_but_themselves(seed: int, width: int) -> None:
    teacher = [gaussian(2, 4, 12, seed=seed + n) for n in range(3)]
    assert float(relation_loss(teacher, teacher)) == pytest.approx(0.0, abs=1e-6)
    student = [gaussian(2, 4, width, seed=seed + 50 + n) for n in range(3)]
    assert float(relation_loss(student, teacher)) > 1e-3


def test_one_tensor_may_hold_queries_keys_and_values() -> None:
    student, teacher = ([gaussian(2, 4, 6, seed=n + shift) for n in range(3)] for shift in (0, 7))
    fused = torch.cat(teacher, dim=-1)
    assert float(relation_loss(student, [fused])) == pytest.approx(float(relation_loss(student, teacher)))
    assert float(relation_loss([torch.cat(student, dim=-1)], [fused])) == pytest.approx(
        float(relation_loss(student, teacher))
    )


# Where to look


class Attention(nn.Module):
    """Of two heads of three channels."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 2
        self.q, self.k, self.v, self.out = (nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).view(*x.shape[:2], self.heads, 3).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = torch.softmax(q @ k.transpose(-1, -2) / 3**0.5, dim=-1) @ v
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(*(Attention() for _ in range(depth)))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean(dim=1))


BLOCKS = ("body.0", "body.1", "body.2")
POINTS = Points(BLOCKS, tuple((f"{b}.q", f"{b}.k", f"{b}.v") for b in BLOCKS))


def encoder(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder().eval()


def test_blocks_and_the_last_attention_are_captured_and_the_hooks_go() -> None:
    model, x = encoder(), torch.randn(2, 4, 6)
    with torch.no_grad(), captured(model, POINTS) as found:
        model(x)
        first = model.body[0](x)
        before_last = model.body[:2](x)
    assert list(found.blocks) == list(BLOCKS)
    torch.testing.assert_close(found.blocks["body.1"], before_last)
    torch.testing.assert_close(found.blocks["body.0"], first)
    assert len(found.attention) == 3
    torch.testing.assert_close(found.attention[2], model.body[2].v(before_last))
    assert not any(module._forward_hooks for module in model.modules())


def test_points_within_a_shallow_student_are_those_that_it_has() -> None:
    student = drop_blocks(encoder(), ("body.0", "body.2"))
    assert POINTS.within(student) == Points(("body.1",), (("body.1.q", "body.1.k", "body.1.v"),))
    assert POINTS.within(encoder()) == POINTS
    assert POINTS.within(nn.Linear(2, 2)) == Points()


# Learning from inside


def sequences(rows: int = 48) -> TaskData:
    """Whether the first channel of a sequence sums to a positive number."""

    def split(count: int, seed: int) -> Split:
        x = torch.randn(count, 4, 6, generator=torch.Generator().manual_seed(seed))
        return Split((x,), (x[..., 0].sum(dim=1) > 0).long())

    train = split(rows, 0)
    return TaskData(
        train=train, calibration=train, validation=split(20, 1), test=split(20, 2), class_names=("-", "+"),
        input_names=("x",), preprocessing={}, prepare=lambda inputs: inputs, augment=lambda inputs, _i, _v: inputs,
    )  # fmt: skip


SCHEDULE = Schedule(steps=60, learning_rate=0.01, batch_size=16, weight_decay=0.0, seed=3, optimizer="adamw")


def narrow_and_shallow() -> nn.Module:
    """Without the middle block, and with one head less in the last."""
    student = drop_blocks(encoder(seed=7), ("body.1",))
    x = torch.randn(2, 4, 6)
    widths, _ = find_inner_widths(student, trace(student, (x,)), (x,))
    last = next(width for width in widths if width.name == "body.2.q")
    without_units_(student, last, torch.tensor([1]))
    return student


@pytest.mark.parametrize("weights", [{"hidden_weight": 1.0}, {"relation_weight": 1.0}])
def test_a_student_nears_what_is_inside_its_teacher(weights: dict[str, float]) -> None:
    data, best = sequences(), encoder(seed=1)
    teacher = Teacher(best, data, views=1, acceleration=Acceleration(), points=POINTS)

    def distance(student: nn.Module) -> float:
        own = POINTS.within(student)
        with torch.no_grad(), captured(student, own) as mine:
            student(*data.train.inputs)
        theirs = teacher.inside(data.train.inputs)
        if "hidden_weight" in weights:
            return float(hidden_loss(mine, theirs, counterparts(own.blocks, BLOCKS)))
        return float(relation_loss(mine.attention, theirs.attention))

    def trained(spec: DistillationSpec) -> float:
        student = narrow_and_shallow()
        train_(student, data, teacher, spec, SCHEDULE, views=1)
        assert not any(module._forward_hooks for module in student.modules())
        return distance(student)

    # the outputs alone leave what is inside free
    assert trained(DistillationSpec(alpha=0.5, **weights)) < 0.7 * trained(DistillationSpec(alpha=0.5))


def test_training_from_inside_follows_from_its_seed() -> None:
    def weights(state: int) -> list[Tensor]:
        data = sequences()
        teacher = Teacher(encoder(seed=1), data, views=1, acceleration=Acceleration(), points=POINTS)
        student = narrow_and_shallow()
        torch.manual_seed(state)
        spec = DistillationSpec(hidden_weight=0.5, relation_weight=0.5, hint_weight=0.5)
        train_(student, data, teacher, spec, replace(SCHEDULE, steps=5), views=1)
        return list(student.parameters())

    assert all(torch.equal(a, b) for a, b in zip(weights(0), weights(99), strict=True))


class Wide(nn.Module):
    """A student of another width, with blocks of the same names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.body = nn.Sequential(*(nn.Linear(width, width) for _ in range(3)))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.enter(x)).mean(dim=1))


def test_blocks_of_another_width_learn_through_a_map_and_of_other_positions_not_at_all() -> None:
    data, best = sequences(), encoder(seed=1)
    teacher = Teacher(best, data, views=1, acceleration=Acceleration(), points=Points(BLOCKS))
    torch.manual_seed(0)
    train_(Wide(9), data, teacher, DistillationSpec(hidden_weight=1.0), replace(SCHEDULE, steps=3), views=1)

    class Pooled(Wide):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(self.enter(x).mean(dim=1)))

    def weights(spec: DistillationSpec) -> list[Tensor]:
        torch.manual_seed(0)
        student = Pooled(9)
        train_(student, data, teacher, spec, replace(SCHEDULE, steps=3), views=1)
        return list(student.parameters())

    with_hidden, without = weights(DistillationSpec(hidden_weight=1.0)), weights(DistillationSpec())
    assert all(torch.equal(a, b) for a, b in zip(with_hidden, without, strict=True))


def test_a_traced_student_learns_without_what_is_inside() -> None:
    data = sequences()
    teacher = Teacher(encoder(seed=1), data, views=1, acceleration=Acceleration(), points=POINTS)
    student = trace(encoder(seed=2), (torch.randn(2, 4, 6),))
    before = student.get_parameter("head.weight").detach().clone()
    spec = DistillationSpec(hidden_weight=1.0, relation_weight=1.0)
    train_(student, data, teacher, spec, replace(SCHEDULE, steps=2), views=1)
    assert not torch.equal(student.get_parameter("head.weight"), before)
