"""Training a student under a teacher for a number of optimiser steps."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from autocompress.compression.intermediate import (
    Captured,
    Points,
    captured,
    counterparts,
    hidden_loss,
    relation_loss,
    width_key,
)
from autocompress.compression.muon import FilterMuon, mixes_channels
from autocompress.data.task import Loss, TaskData
from autocompress.errors import TrialFailed
from autocompress.layers import call, classifier_name, input_node, layer_of
from autocompress.plan import DistillationSpec

WARM_UP_FRACTION = 0.15
BATCHES_OF_LIKE_LENGTH = 32
STEP_RATE = 0.01
"""Learning rate of quantiser steps under AdamW, as a share of the weights'."""
FILTER_RATE = 1 / 3
"""Learning rate of filters under Muon, as a share of that of the rest under SGD."""
FILTER_DECAY = 100
"""Weight decay of filters under Muon, in units of SGD's, which enters the gradient."""
FEATURES = "classifier_features"
"""The module of a traced network whose input enters the classifier."""
CACHE_LIMIT_BYTES = 2**30
NEXT_SEED = 1000
"""What a training that goes on adds to the seed."""


@dataclass(frozen=True)
class Acceleration:
    """How a training step runs on this machine."""

    bfloat16: bool = False
    channels_last: bool = False
    device: str = "cpu"

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision where it helps."""
        return torch.autocast(self.device, torch.bfloat16) if self.bfloat16 else nullcontext()

    def layout(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Inputs on the device and in the memory layout of this mode."""
        moved = tuple(x.to(self.device, non_blocking=True) for x in inputs)
        if not self.channels_last:
            return moved
        return tuple(x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in moved)


@dataclass(frozen=True)
class Schedule:
    """Budget and optimiser of one training phase, under a one-cycle cosine rate.

    ``optimizer`` is ``muon`` (for filters of convolutions; SGD for the rest), ``sgd`` (with Nesterov momentum) or
    ``adamw``.
    """

    steps: int
    learning_rate: float
    batch_size: int
    weight_decay: float
    seed: int
    optimizer: str = "muon"
    acceleration: Acceleration = Acceleration()
    each_batch: Callable[[], AbstractContextManager[object]] = nullcontext


@contextmanager
def captured_features(model: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what enters the last linear layer; the list stays empty for a network without one."""
    features: list[Tensor] = []
    name = FEATURES if isinstance(model, torch.fx.GraphModule) else classifier_name(model)
    if name is None or name not in dict(model.named_modules()):
        yield features
        return
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _m, args: features.append(args[0]))
    try:
        yield features
    finally:
        handle.remove()


def pooled_features(features: Tensor) -> Tensor:
    """Features (batch, ..., width) as (batch, width): the mean over positions, of which batches have different numbers."""
    return features.flatten(1, -2).mean(dim=1) if features.dim() > 2 else features


def mark_features_(traced: torch.fx.GraphModule, classifier: str | None) -> None:
    """Make what enters a layer of a traced network a module's input, where :func:`captured_features` finds it."""
    for node in traced.graph.nodes:
        layer = layer_of(node)
        if layer is not None and layer.name == classifier:
            source = input_node(node)
            traced.add_submodule(FEATURES, nn.Identity())
            with traced.graph.inserting_after(source):
                marked = traced.graph.call_module(FEATURES, (source,))
            marked.meta["val"] = source.meta["val"]
            node.replace_input_with(source, marked)
            traced.recompile()
            return


Table = Callable[[int, tuple[int, int]], Tensor]
"""(view, shape) -> what is known of its answers: float16, a row for each example, not a number where it is unknown."""


def unknown(view: int, shape: tuple[int, int]) -> Tensor:
    """A table of nothing known, in memory."""
    return torch.full(shape, math.nan, dtype=torch.float16)


def _missing(answers: Tensor) -> Tensor:
    """Rows, (n,), that are not wholly known: another process may be writing one."""
    return answers.isnan().any(dim=1)


class Teacher:
    """The base's logits and features for (example, augmented view), computed once and remembered.

    Views are fixed functions of the example, so after the first trials the teacher costs nothing. Where
    the tables would be larger than ``CACHE_LIMIT_BYTES`` every batch runs the teacher again. What its ``points``
    put out is too much to remember: a training that asks for it runs the teacher too.

    Attributes:
        seconds: that answers which are remembered have taken.
        remembers: whether a view costs the teacher's time only once.
    """

    def __init__(
        self,
        model: nn.Module,
        data: TaskData,
        views: int,
        acceleration: Acceleration,
        points: Points | None = None,
        fast: nn.Module | None = None,
        table: Table = unknown,
    ) -> None:
        """
        Args:
            fast: answers in the model's place: the same function, in a form without points that takes less time.
            table: where the answers to a view are remembered; asked for when the view is first asked about.
        """
        self._data, self._acceleration = data, acceleration
        self.seconds, self._answers = 0.0, 0
        # the base itself stays where it is: students are copied from it
        on_cpu = acceleration.device == "cpu"
        self._model = model.eval() if on_cpu else copy.deepcopy(model).eval().to(acceleration.device)
        self.points = (points or Points()).within(model)
        self._fast = self._model if fast is None or not on_cpu else fast.eval()
        if self._fast is not self._model and acceleration.channels_last:
            self._fast.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        logits, features = self._run(data.training_inputs(torch.arange(1), 0))
        self._output_shape = logits.shape[1:]
        self._width = logits[0].numel()
        self.feature_width = features.shape[1]
        self._shape = len(data.train), self._width + self.feature_width
        self.remembers = views * math.prod(self._shape) * torch.float16.itemsize <= CACHE_LIMIT_BYTES
        self._new_table, self._tables = table, dict[int, Tensor]()

    def expected_seconds(self, views: int, examples: int) -> float:
        """What a training on so many examples in the first ``views`` views waits for answers that are not known yet."""
        if not self.remembers or not self._answers:
            return 0.0
        missing = sum(int(self._table(view)[:, 0].isnan().sum()) for view in range(views))
        return min(missing, examples) * self.seconds / self._answers

    def outputs(self, indices: Tensor, view: int, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Outputs (batch, ...) and features (batch, width) in float32 for the given train rows."""
        if not self.remembers:
            return self._run(inputs)
        table = self._table(view)
        known = table[indices]
        missing = _missing(known)
        if missing.any():
            began = time.perf_counter()
            rows = tuple(x[missing] for x in inputs)
            if len(rows[0]) == 1:
                # a single row meets other kernels, whose last bits differ; answers must not depend on who asks first
                rows = tuple(torch.cat([x, x]) for x in rows)
            logits, features = self._run(rows)
            fresh = torch.cat([logits.reshape(len(logits), -1), features], dim=1)[: int(missing.sum())].cpu()
            known[missing] = fresh.to(known.dtype)
            table[indices[missing]] = fresh.to(known.dtype)
            self._answers += len(fresh)
            self.seconds += time.perf_counter() - began
        known = known.float()
        return known[:, : self._width].reshape(-1, *self._output_shape), known[:, self._width :]

    def _table(self, view: int) -> Tensor:
        if view not in self._tables:
            self._tables[view] = self._new_table(view, self._shape)
        return self._tables[view]

    def inside(self, inputs: tuple[Tensor, ...]) -> Captured:
        """What the teacher's points put out."""
        with torch.no_grad(), self._acceleration.autocast(), captured(self._model, self.points) as found:
            call(self._model, self._acceleration.layout(inputs))
        return found

    def _run(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), self._acceleration.autocast(), captured_features(self._fast) as features:
            logits = call(self._fast, self._acceleration.layout(inputs)).float()
        pooled = pooled_features(features[-1].float()) if features else logits.new_zeros(len(logits), 0)
        return logits, pooled


def distillation_loss(
    outputs: Tensor, teacher_outputs: Tensor, labels: Tensor, spec: DistillationSpec, loss: Loss | None = None
) -> Tensor:
    """(1 - alpha) cross-entropy + alpha T^2 KL(teacher || student) at temperature T.

    Hinton, Vinyals, Dean 2015, section 2; the factor T^2 keeps both gradients on one scale. A task with a loss
    of its own has no class probabilities: there the outputs' squared distance, in units of the teacher's
    variance, takes the place of the divergence.

    Args:
        outputs: (batch, classes) of the student, or (batch, ...) of another task.
        teacher_outputs: of the same shape.
        labels: (batch,) class indices, or the task's targets.
        loss: of another task than classification.
    """
    if loss is not None:
        distance = F.mse_loss(outputs, teacher_outputs) / teacher_outputs.var().clamp_min(1e-6)
        return (1 - spec.alpha) * loss(outputs, labels) + spec.alpha * distance
    temperature = spec.temperature
    soft = F.kl_div(
        F.log_softmax(outputs / temperature, dim=1),
        F.log_softmax(teacher_outputs / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )
    return (1 - spec.alpha) * F.cross_entropy(outputs, labels) + spec.alpha * temperature**2 * soft


def hint_loss(features: Tensor, teacher_features: Tensor, regressor: nn.Module) -> Tensor:
    """Squared distance of the regressed student features to the teacher's, in units of their variance.

    Romero et al. 2015 (FitNets), equation 3, on the features that enter the classifiers.
    """
    return F.mse_loss(regressor(pooled_features(features)), teacher_features) / teacher_features.var().clamp_min(1e-6)


def index_stream(
    rows: int, batch_size: int, views: int, seed: int, lengths: Tensor | None = None
) -> Iterator[tuple[Tensor, int]]:
    """Endless (indices, view): each epoch is one permutation of the train rows under one view.

    All short trainings begin with the first view, so that the teacher has seen it before. A training that goes on
    from another one, whose seed is greater by :data:`NEXT_SEED`, begins with the next.

    Args:
        lengths: of the examples, (rows,), where they differ: batches are then made of examples of like length,
            from stretches of the permutation, because a batch is as long as its longest example.
    """
    generator = torch.Generator().manual_seed(seed)
    batch_size = min(batch_size, rows)
    epoch = seed // NEXT_SEED
    while True:
        order = torch.randperm(rows, generator=generator)
        starts = torch.arange(0, rows - batch_size + 1, batch_size)
        if lengths is not None:
            stretches = torch.split(order, batch_size * BATCHES_OF_LIKE_LENGTH)
            order = torch.cat([part[lengths[part].argsort(stable=True)] for part in stretches])
            starts = starts[torch.randperm(len(starts), generator=generator)]
        for start in starts.tolist():
            yield order[start : start + batch_size], epoch % views
        epoch += 1


def worthwhile_views(views: int, epochs: float) -> int:
    """Of so many views, those that a training should use: it sees each four times.

    A new view costs the teacher's time, which for a small student is as much as its own (docs/log.md).
    """
    return min(views, max(1, math.ceil(epochs / 4)))


def train_(
    student: nn.Module,
    data: TaskData,
    teacher: Teacher | None,
    spec: DistillationSpec,
    schedule: Schedule,
    views: int,
) -> None:
    """Train the student in place; without a teacher on the labels alone.

    A traced network has no modules to look into, so it learns no hidden states and no relations.

    Raises:
        TrialFailed: the loss is no longer finite.
    """
    if schedule.steps == 0:
        return
    torch.manual_seed(schedule.seed)
    device = schedule.acceleration.device
    student.to(device)
    if schedule.acceleration.channels_last:
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    lessons = _Lessons(student, teacher if spec.asks_teacher else None, data, spec)
    parameters = [p for p in (*student.parameters(), *lessons.regressors.to(device).parameters()) if p.requires_grad]
    optimisers = _optimisers(student, parameters, schedule)
    rates = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=[group["lr"] for group in optimiser.param_groups],
            total_steps=schedule.steps + 1,
            pct_start=WARM_UP_FRACTION,
            cycle_momentum=False,
        )
        for optimiser in optimisers
    ]
    student.train()
    rows = len(data.train)
    if teacher is not None and teacher.remembers:
        views = worthwhile_views(views, schedule.steps * schedule.batch_size / rows)
    stream = index_stream(rows, schedule.batch_size, views, schedule.seed, data.train_lengths)
    with captured_features(student) as features, captured(student, lessons.points) as inside:
        for _, (indices, view) in zip(range(schedule.steps), stream, strict=False):
            with schedule.each_batch():
                inputs, labels = data.training_inputs(indices, view), data.train.labels[indices].to(device)
                with schedule.acceleration.autocast():
                    outputs = call(student, schedule.acceleration.layout(inputs)).float()
                loss = lessons.loss(outputs, labels, features, inside, (indices, view, inputs))
                features.clear()
                inside.attention.clear()
                student.zero_grad()
                lessons.regressors.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, 5.0)
                for optimiser, rate in zip(optimisers, rates, strict=True):
                    optimiser.step()
                    rate.step()
    if not math.isfinite(loss.item()):
        raise TrialFailed(
            "training",
            f"the loss must stay finite; it is {loss.item()} after {schedule.steps} steps; lower the learning rate",
        )
    student.to("cpu").eval()


class _Lessons:
    """What a student learns from: labels, and where there is a teacher its outputs and what is inside it."""

    def __init__(self, student: nn.Module, teacher: Teacher | None, data: TaskData, spec: DistillationSpec) -> None:
        self.teacher, self.spec, self.task_loss = teacher, spec, data.loss
        self.regressors = nn.ModuleDict()
        self.points, self.pairs = Points(), {}
        self.use_hint = self.use_relations = False
        if teacher is None:
            return
        width = classifier_width(student)
        self.use_hint = spec.hint_weight > 0 and width > 0 and teacher.feature_width > 0
        if self.use_hint:
            self.regressors["hint"] = nn.Linear(width, teacher.feature_width)
        if isinstance(student, torch.fx.GraphModule) or not (spec.hidden_weight or spec.relation_weight):
            return
        own = teacher.points.within(student)
        self.use_relations = spec.relation_weight > 0 and bool(own.attentions)
        self.points = Points(own.blocks if spec.hidden_weight else (), own.attentions if self.use_relations else ())
        self.pairs = counterparts(self.points.blocks, teacher.points.blocks) if self.points.blocks else {}
        self._fit_widths(student, teacher, data)

    def _fit_widths(self, student: nn.Module, teacher: Teacher, data: TaskData) -> None:
        """A linear map for each block whose width differs from its teacher's."""
        if not self.pairs:
            return
        inputs = data.training_inputs(torch.arange(2), 0)
        device = next(student.parameters()).device
        with torch.no_grad(), captured(student.eval(), self.points) as mine:
            call(student, tuple(x.to(device) for x in inputs))
        theirs = teacher.inside(inputs)
        for own, other in list(self.pairs.items()):
            here, there = mine.blocks[own].shape, theirs.blocks[other].shape
            if here[:-1] != there[:-1]:  # maps of other sizes have no common positions
                del self.pairs[own]
            elif here[-1] != there[-1]:
                self.regressors[width_key(own)] = nn.Linear(here[-1], there[-1])

    def loss(
        self,
        outputs: Tensor,
        labels: Tensor,
        features: list[Tensor],
        inside: Captured,
        batch: tuple[Tensor, int, tuple[Tensor, ...]],
    ) -> Tensor:
        """Of one batch, given as (indices, view, inputs)."""
        if self.teacher is None:
            return F.cross_entropy(outputs, labels) if self.task_loss is None else self.task_loss(outputs, labels)
        spec = self.spec
        said, teacher_features = (x.to(outputs.device) for x in self.teacher.outputs(*batch))
        loss = distillation_loss(outputs, said, labels, spec, self.task_loss)
        if self.use_hint:
            hint = hint_loss(features[-1].float(), teacher_features, self.regressors["hint"])
            loss = loss + spec.hint_weight * hint
        if self.pairs or self.use_relations:
            theirs = self.teacher.inside(batch[2])
            if self.pairs:
                loss = loss + spec.hidden_weight * hidden_loss(inside, theirs, self.pairs, self.regressors)
            if self.use_relations:
                loss = loss + spec.relation_weight * relation_loss(inside.attention, theirs.attention)
        return loss


def _optimisers(student: nn.Module, parameters: list[nn.Parameter], schedule: Schedule) -> list[torch.optim.Optimizer]:
    if schedule.optimizer == "adamw":
        return [_adamw(student, parameters, schedule)]
    filters = [p for p in parameters if mixes_channels(p)] if schedule.optimizer == "muon" else []
    known = {id(p) for p in filters}
    groups = _with_decay_on_weights([p for p in parameters if id(p) not in known], schedule.weight_decay)
    sgd = torch.optim.SGD(groups, lr=schedule.learning_rate, momentum=0.9, nesterov=True)
    if not filters:
        return [sgd]
    return [sgd, FilterMuon(filters, schedule.learning_rate * FILTER_RATE, schedule.weight_decay * FILTER_DECAY)]


def _adamw(student: nn.Module, parameters: list[nn.Parameter], schedule: Schedule) -> torch.optim.Optimizer:
    steps = {id(p) for name, p in student.named_parameters() if name.endswith(".step") and "parametrizations" in name}
    groups = _with_decay_on_weights([p for p in parameters if id(p) not in steps], schedule.weight_decay)
    # Adam moves every parameter by the rate, whatever its size, and a grid's step is far smaller than a weight
    rate = schedule.learning_rate * STEP_RATE
    groups.append({"params": [p for p in parameters if id(p) in steps], "weight_decay": 0.0, "lr": rate})
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=schedule.learning_rate, fused=True)


def classifier_width(model: nn.Module) -> int:
    """Width of the features that enter the last linear layer; 0 without one."""
    if isinstance(model, torch.fx.GraphModule):
        marked = [node for node in model.graph.nodes if node.op == "call_module" and node.target == FEATURES]
        return int(marked[0].meta["val"].shape[-1]) if marked else 0
    name = classifier_name(model)
    layer = None if name is None else model.get_submodule(name)
    return layer.in_features if isinstance(layer, nn.Linear) else 0


def _with_decay_on_weights(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    """Biases, batch-norm scales and quantiser scales are not decayed: that only fights their role."""
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def seconds_per_step_(
    student: nn.Module,
    data: TaskData,
    schedule: Schedule,
    teacher: Teacher | None = None,
    spec: DistillationSpec | None = None,
    views: int = 1,
) -> float:
    """Mean of ``schedule.steps`` training steps in place, at a rate that teaches nothing, after one that warms up.

    Neither waits for ``schedule.each_batch`` count, nor answers of the teacher that are remembered from then on.

    Args:
        schedule: its rate is not used.

    Raises:
        TrialFailed: what the student puts out is not finite.
    """
    seconds: list[float] = []

    def taught_s() -> float:
        return 0.0 if teacher is None else teacher.seconds

    @contextmanager
    def timed() -> Iterator[None]:
        with schedule.each_batch():
            began = time.perf_counter() - taught_s()
            yield
            if schedule.acceleration.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - taught_s() - began)

    probe = replace(schedule, steps=1 + schedule.steps, learning_rate=1e-9, each_batch=timed)
    train_(student, data, teacher, spec or DistillationSpec(), probe, views)
    return statistics.fmean(seconds[1:])


def fastest_acceleration(model: nn.Module, data: TaskData, schedule: Schedule) -> Acceleration:
    """Time a few training steps of ``model`` (unchanged) in each mode and return the fastest.

    bfloat16 is three times faster on a processor with matching instructions and slower on others;
    which of the two this machine is, only a measurement says.
    """

    def seconds(mode: Acceleration) -> float:
        return seconds_per_step_(copy.deepcopy(model), data, replace(schedule, steps=2, acceleration=mode))

    if torch.cuda.is_available():
        return Acceleration(bfloat16=torch.cuda.is_bf16_supported(), channels_last=True, device="cuda")
    images = any(x.dim() == 4 for x in data.example_inputs(1))
    fastest = min((Acceleration(False), Acceleration(True)), key=seconds)
    return min((fastest, replace(fastest, channels_last=True)), key=seconds) if images else fastest
