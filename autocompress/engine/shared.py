"""The shared weights of a run: trained in cycles, kept on disk, and asked what a plan would score.

A cycle is a whole one-cycle training of a pool of members, so that the weights are of use after each (warm restarts,
Loshchilov and Hutter 2017); a death loses the cycle at hand. Families have weights of their own: those of the base
start as the base, those of the model space at random.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from autocompress.analysis import divergence
from autocompress.candidate import Candidate
from autocompress.compression.distillation import NEXT_SEED, Schedule, train_
from autocompress.compression.elastic import (
    Elastic,
    Member,
    SharedWeights,
    load_member_,
    make_member,
    outputs_of,
    reestimate_,
    run_member,
    with_one_rounded,
)
from autocompress.engine.run_folder import RunFolder, write_json
from autocompress.engine.step_time import affordable_steps
from autocompress.errors import ModelError, TrialFailed
from autocompress.file_lock import exclusive
from autocompress.layers import call
from autocompress.pipeline import Bench, build_member, build_network, float_state, score, take_over
from autocompress.plan import DistillationSpec, Plan
from autocompress.weights import state_digest
from autocompress.whole_file import written_whole

SCORED_EXAMPLES = 1000
"""Of validation, spread over it, on which members are scored."""
BATCH = 125
BIT_EXAMPLES = 32
"""On which the error of rounding each layer of a member is measured."""
FIRST_STEPS = 24
"""Of the first cycle, which only finds out how long a step takes."""
TOLERANCE = 1e-4
TEACHING = DistillationSpec(alpha=0.9, temperature=4.0)
"""How the shared weights are taught; each plan's own weights of the losses are for its own training."""


@dataclass
class Shared:
    """Shared weights of each family, as they are on disk or newer by the cycle at hand."""

    bench: Bench
    run: RunFolder
    seed: int
    weights: dict[str, SharedWeights] = field(default_factory=dict)
    _known: dict[str, int] = field(default_factory=dict)
    _reference: Tensor | None = None
    _bit_errors: dict[str, dict[str, float]] = field(default_factory=dict)
    _inherited: dict[str, dict[str, Tensor] | None] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where the weights and the record of their training lie."""
        return self.run.root / "shared"

    def record(self) -> dict[str, dict[str, float]]:
        """Cycles, steps and seconds of training of each family, of all processes."""
        path = self.folder / "progress.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    def seconds(self) -> float:
        """Spent on training."""
        return sum(entry["seconds"] for entry in self.record().values())

    def of(self, family: str) -> SharedWeights:
        """A family's weights, read again where another process has trained them."""
        cycles = int(self.record().get(family, {}).get("cycles", 0))
        if family not in self.weights or self._known.get(family) != cycles:
            shared = SharedWeights()
            path = self._path(family)
            if path.is_file():
                shared.load_(load_file(path))
            self.weights[family], self._known[family] = shared, cycles
            self._bit_errors.clear()
        return self.weights[family]

    def _path(self, family: str) -> Path:
        return self.folder / f"{family}.safetensors"

    def train_(self, family: str, plans: Sequence[Plan], seconds: float, macs: float) -> None:
        """One cycle over a pool of plans, dearest first; alone, whoever else would train waits and goes on from there.

        Args:
            macs: multiplications of one example, the mean of the pool, for the record.
        """
        self.folder.mkdir(exist_ok=True)
        with exclusive(self.folder / "lock"):
            shared, record = self.of(family), self.record()
            mine = record.get(family, {"cycles": 0, "steps": 0, "seconds": 0.0, "seconds_per_step": 0.0, "macs": 0.0})
            begun = time.perf_counter()
            members = list(self._members(plans, shared))
            per_step = mine["seconds_per_step"]
            steps = max(FIRST_STEPS, affordable_steps(self.bench, seconds, per_step)) if per_step else FIRST_STEPS
            trained, taught_s = time.perf_counter(), self._taught_s()
            try:
                train_(
                    Elastic(shared, members, self.seed + int(mine["cycles"])),
                    self.bench.data,
                    self.bench.teacher,
                    TEACHING,
                    self._schedule(family, steps, int(mine["cycles"])),
                    self.bench.training.views,
                )
                self._keep(family, shared)
            except TrialFailed:  # diverged: the next cycle, with other examples, starts from what is on disk
                del self.weights[family]
            ended = time.perf_counter()
            taught_s = self._taught_s() - taught_s
            record[family] = {
                "cycles": mine["cycles"] + 1,
                "steps": mine["steps"] + steps,
                "seconds": mine["seconds"] + ended - begun,
                "seconds_per_step": (ended - trained - taught_s) / steps,
                "macs": macs,
            }
            write_json(self.folder / "progress.json", record)
            self._known[family] = int(record[family]["cycles"])
            self._bit_errors.clear()

    def _taught_s(self) -> float:
        return 0.0 if self.bench.teacher is None else self.bench.teacher.seconds

    def _members(self, plans: Sequence[Plan], shared: SharedWeights) -> Iterator[Member]:
        """All that can share; the first one decides what shapes are shared."""
        for plan in plans:
            with suppress(ModelError, TrialFailed):
                yield build_member(self.bench, plan, shared)

    def _schedule(self, family: str, steps: int, cycle: int) -> Schedule:
        settings = self.bench.training
        return Schedule(
            steps=steps,
            learning_rate=settings.peak_rate(family),
            batch_size=settings.batch_size,
            weight_decay=settings.weight_decay,
            seed=self.seed + NEXT_SEED * cycle,
            optimizer=settings.optimizer,
            acceleration=self.bench.acceleration,
            each_batch=self.bench.each_batch,
        )

    def _keep(self, family: str, shared: SharedWeights) -> None:
        with written_whole(self._path(family)) as file:
            file.write(save({name: value.detach().contiguous() for name, value in shared.state_dict().items()}))

    def member(self, plan: Plan) -> Member:
        """The plan as a member, its batch norms fitted to it."""
        shared = self.of(plan.architecture.family)
        member = build_member(self.bench, plan, shared)
        self._reestimate_(shared, member)
        return member

    def _reestimate_(self, shared: SharedWeights, member: Member) -> None:
        data = self.bench.data
        batches = self._guarded(inputs for inputs, _ in data.batches(data.calibration, BATCH))
        reestimate_(shared, member, (self._prepared(inputs) for inputs in batches))

    def score(self, plan: Plan, parent: Candidate | None = None) -> tuple[float, float]:
        """Divergence from the base and drop in points of a plan's member, on a part of validation.

        Args:
            parent: a trained candidate whose weights the plan begins with, to score instead of the shared ones.
        """
        data = self.bench.data
        if parent is None:
            weights, member = self.of(plan.architecture.family), self.member(plan)
        else:
            weights, member = self._trained_member(plan, parent)
        own, reference = self._outputs(weights, member), self.reference()
        labels = data.validation.labels[self._rows()]
        classification = data.loss is None
        if data.metric is None:
            hits = [(x.argmax(dim=1) == labels).float().mean() for x in (reference, own)]
            drop = 100 * float(hits[0] - hits[1])
        else:
            drop = 100 * (score(data, reference.numpy(), labels) - score(data, own.numpy(), labels))
        return divergence(own, reference, classification), drop

    def _trained_member(self, plan: Plan, parent: Candidate) -> tuple[SharedWeights, Member]:
        network, weights = build_network(self.bench, plan), SharedWeights()
        state = self.inherited(plan, parent)
        assert state is not None
        network.load_state_dict(state)
        weights.cover_(network)
        member = make_member(network, self.bench.data.example_inputs(2), {}, {}, plan.quantization.precisions)
        self._reestimate_(weights, member)
        return weights, member

    def inherited(self, plan: Plan, parent: Candidate) -> dict[str, Tensor] | None:
        """What a plan's network takes over from a trained candidate; None where it is no part of that."""
        key = f"{parent.trial} {plan.model_dump_json(include={'architecture', 'pruning', 'seed'})}"
        if key not in self._inherited:
            state = load_file(self.run.checkpoint(parent.trial))
            self._inherited = {key: take_over(self.bench, plan, parent.plan, state)}
        return self._inherited[key]

    def reference(self) -> Tensor:
        """The base's outputs on the scored rows."""
        if self._reference is None:
            with torch.no_grad():
                self._reference = torch.cat([call(self.bench.base, inputs).float() for inputs in self._scored()])
        return self._reference

    def bit_errors(self, plan: Plan, bits: int) -> dict[str, float]:
        """Error of rounding each layer of a plan's member alone, against the member without any rounding."""
        key = plan.network
        if key not in self._bit_errors:
            shared = self.of(plan.architecture.family)
            member = self.member(plan)
            inputs = self.bench.data.model_inputs(self.bench.data.validation, self._rows()[:BIT_EXAMPLES])
            classification = self.bench.data.loss is None
            with torch.no_grad():
                whole = run_member(shared, member, inputs)
                self._bit_errors[key] = {
                    name.removesuffix(".weight"): divergence(
                        run_member(shared, with_one_rounded(member, name, bits), inputs), whole, classification
                    )
                    for name, part in member.parts.items()
                    if len(part.shape) > 1
                }
        return self._bit_errors[key]

    def write_start(self, plan: Plan, path: Path, parent: Candidate | None = None) -> str:
        """Write the weights that a plan's training starts from; returns their digest.

        Args:
            parent: a trained candidate whose weights are taken instead of the shared ones.
        """
        if parent is None:
            network = build_network(self.bench, plan)
            load_member_(network, self.of(plan.architecture.family), self.member(plan))
            state = float_state(network)
        else:
            found = self.inherited(plan, parent)
            assert found is not None
            state = found
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as file:
            file.write(save(state))
        return state_digest(load_file(path))

    def disagreement(self, plan: Plan) -> float:
        """Largest relative difference between a plan's network and its member with the base's own weights."""
        shared = SharedWeights()
        network = build_network(self.bench, plan)
        member = build_member(self.bench, plan, shared)
        own, gathered = outputs_of(shared, network, member, self.bench.data.example_inputs(2))
        return float((own - gathered).abs().max() / own.abs().max().clamp_min(1e-12))

    def _outputs(self, shared: SharedWeights, member: Member) -> Tensor:
        with torch.no_grad(), self.bench.acceleration.autocast():
            return torch.cat([run_member(shared, member, self._prepared(x)).float() for x in self._scored()])

    def _prepared(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(x.to("cpu") for x in self.bench.acceleration.layout(inputs))

    def _rows(self) -> Tensor:
        size = len(self.bench.data.validation)
        return torch.from_numpy(np.unique(np.linspace(0, size - 1, min(SCORED_EXAMPLES, size)).astype(np.int64)))

    def _scored(self) -> Iterator[tuple[Tensor, ...]]:
        data = self.bench.data
        yield from self._guarded(inputs for inputs, _ in data.batches(data.validation.take(self._rows()), BATCH))

    def _guarded(self, batches: Iterable[tuple[Tensor, ...]]) -> Iterator[tuple[Tensor, ...]]:
        """Each batch while nothing is timed."""
        for inputs in batches:
            with self.bench.each_batch():
                yield inputs
