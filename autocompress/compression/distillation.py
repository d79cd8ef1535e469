"""Training a student under a teacher for a number of optimiser steps."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.data.task import TaskData
from autocompress.errors import TrialFailed
from autocompress.layers import call, classifier_name
from autocompress.plan import DistillationSpec

WARM_UP_FRACTION = 0.15
CACHE_LIMIT_BYTES = 2**30


@dataclass(frozen=True)
class Acceleration:
    """How a training step runs on this machine."""

    bfloat16: bool = False
    channels_last: bool = False

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it helps."""
        return torch.autocast("cpu", torch.bfloat16) if self.bfloat16 else nullcontext()

    def layout(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs in the memory layout of this mode."""
        if not self.channels_last:
            return inputs
        return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in inputs)


@dataclass(frozen=True)
class Schedule:
    """Budget and optimiser of one training phase: SGD with Nesterov momentum under a one-cycle cosine rate."""

    steps: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    seed: int
    acceleration: Acceleration = Acceleration()
    each_batch: Callable[[], AbstractContextManager[object]] = nullcontext


@contextmanager
def captured_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters the last linear layer; the list stays empty for a network without one."""
    features: list[Tensor] = []
    name = classifier_name(model)
    if name is None:
        yield features
        return
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    try:
        yield features
    finally:
        handle.remove()


class Teacher:
    """The base's logits and features for (example, augmented view), computed once and remembered.

    Views are fixed functions of the example, so after the first trials the teacher costs nothing. Where
    the table would be larger than ``CACHE_LIMIT_BYTES`` every batch runs the teacher again.
    """

    def __init__(self, model: nn.Module, data: TaskData, views: int, acceleration: Acceleration) -> None:
        self._model, self._data, self._acceleration = model.eval(), data, acceleration
        logits, features = self._run(data.training_inputs(torch.arange(1), 0))
        self.feature_width = features.shape[1]
        rows, width = len(data.train), logits.shape[1] + self.feature_width
        self._classes = logits.shape[1]
        fits = views * rows * width * 2 <= CACHE_LIMIT_BYTES
        self._table = torch.full((views, rows, width), math.nan, dtype=torch.float16) if fits else None

    def outputs(self, indices: Tensor, view: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Logits (batch, classes) and features (batch, width) in float32 for the given train rows."""
        if self._table is None:
            return self._run(inputs)
        known = self._table[view, indices]
        missing = known[:, 0].isnan()
        if missing.any():
            rows = tuple(x[missing] for x in inputs)
            if len(rows[0]) == 1:
                # a single row meets other kernels, whose last bits differ; answers must not depend on who asks first
                rows = tuple(torch.cat([x, x]) for x in rows)
            fresh = torch.cat(self._run(rows), dim=1)[: int(missing.sum())]
            known[missing] = fresh.to(known.dtype)
            self._table[view, indices[missing]] = fresh.to(known.dtype)
        known = known.float()
        return known[:, : self._classes], known[:, self._classes :]

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), self._acceleration.autocast(), captured_features(self._model) as features:
            logits = call(self._model, self._acceleration.layout(inputs)).float()
        flat = features[-1].float().flatten(1) if features else logits.new_zeros(len(logits), 0)
        return logits, flat


def distillation_loss(logits: Tensor, teacher_logits: Tensor, labels: Tensor, spec: DistillationSpec) -> Tensor:
    """(1 - alpha) cross-entropy + alpha T^2 KL(teacher || student) at temperature T.

    Hinton, Vinyals, Dean 2015, section 2; the factor T^2 keeps both gradients on one scale.

    Args:
        logits: (batch, classes) of the student.
        teacher_logits: (batch, classes).
        labels: (batch,) class indices.
    """
    temperature = spec.temperature
    soft = F.kl_div(
        F.log_softmax(logits / temperature, dim=1),
        F.log_softmax(teacher_logits / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - spec.alpha) * F.cross_entropy(logits, labels) + spec.alpha * temperature**2 * soft


def hint_loss(features: Tensor, teacher_features: Tensor, regressor: nn.Module) -> Tensor:
    """Squared distance of the regressed student features to the teacher's, in units of their variance.

    Romero et al. 2015 (FitNets), equation 3, on the features that enter the classifiers.
    """
    return F.mse_loss(regressor(features.flatten(1)), teacher_features) / teacher_features.var().clamp_min(1e-6)


def index_stream(rows: int, batch_size: int, views: int, seed: int) -> Iterator[tuple[Tensor, int]]:
    """Endless (indices, view): each epoch is one permutation of the train rows under one view."""
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, rows)
    epoch = seed
    while True:
        order = torch.randperm(rows, generator=generator)
        for start in range(0, rows - batch_size + 1, batch_size):
            yield order[start : start + batch_size], epoch % views
        epoch += 1


def train_(
    student: nn.Module,
    data: TaskData,
    teacher: Teacher | None,
    spec: DistillationSpec,
    schedule: Schedule,
    views: int,
) -> None:
    """Train the student in place; without a teacher on the labels alone.

    Raises:
        TrialFailed: the loss is no longer finite.
    """
    if schedule.steps == 0:
        return
    torch.manual_seed(schedule.seed)
    width = classifier_width(student)
    use_hint = teacher is not None and spec.hint_weight > 0 and width > 0 and teacher.feature_width > 0
    regressor = nn.Linear(width, teacher.feature_width) if teacher is not None and use_hint else nn.Identity()
    parameters = [*student.parameters(), *regressor.parameters()]
    optimiser = torch.optim.SGD(
        _with_decay_on_weights(parameters, schedule.weight_decay),
        lr=schedule.learning_rate,
        momentum=0.9,
        nesterov=True,
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        optimiser,
        max_lr=schedule.learning_rate,
        total_steps=schedule.steps + 1,
        pct_start=WARM_UP_FRACTION,
        cycle_momentum=False,
    )
    student.train()
    if schedule.acceleration.channels_last:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stream = index_stream(len(data.train), schedule.batch_size, views, schedule.seed)
    with captured_features(student) as features:
        for _, (indices, view) in zip(range(schedule.steps), stream, strict=False):
            with schedule.each_batch():
                inputs, labels = data.training_inputs(indices, view), data.train.labels[indices]
                with schedule.acceleration.autocast():
                    logits = call(student, schedule.acceleration.layout(inputs)).float()
                if teacher is None:
                    loss = F.cross_entropy(logits, labels)
                else:
                    teacher_logits, teacher_features = teacher.outputs(indices, view, inputs)
                    loss = distillation_loss(logits, teacher_logits, labels, spec)
                    if use_hint:
                        loss = loss + spec.hint_weight * hint_loss(features[-1].float(), teacher_features, regressor)
                features.clear()
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 5.0)
                optimiser.step()
                rate.step()
    if not math.isfinite(loss.item()):
        raise TrialFailed(
            "training",
            f"the loss must stay finite; it is {loss.item()} after {schedule.steps} steps; lower the learning rate",
        )
    student.eval()


def classifier_width(model: nn.Module) -> int:
    """Width of the features that enter the last linear layer; 0 without one."""
    name = classifier_name(model)
    layer = None if name is None else model.get_submodule(name)
    return layer.in_features if isinstance(layer, nn.Linear) else 0


def _with_decay_on_weights(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Biases, batch-norm scales and quantiser scales are not decayed: that only fights their role."""
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def fastest_acceleration(model: nn.Module, data: TaskData, schedule: Schedule) -> Acceleration:
    """Time a few training steps of ``model`` (unchanged) in each mode and return the fastest.

    bfloat16 is three times faster on a processor with matching instructions and slower on others;
    which of the two this machine is, only a measurement says.
    """

    def seconds(mode: Acceleration) -> float:
        student = copy.deepcopy(model)
        timed = replace(schedule, steps=2, acceleration=mode)
        train_(student, data, None, DistillationSpec(), timed, views=1)
        start = time.perf_counter()
        train_(student, data, None, DistillationSpec(), replace(timed, steps=4), views=1)
        return time.perf_counter() - start

    modes = [Acceleration(b, c) for b in (False, True) for c in (False, True)]
    return min(modes, key=seconds)
