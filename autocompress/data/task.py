"""What a search needs to know of its data. Nothing here assumes images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from autocompress.weights import hash_tensor_

Tensors = tuple[Tensor, ...]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets) -> scalar tensor that is minimised."""
Metric = Callable[[Tensor, Tensor], float]
"""(outputs, targets) of a whole split -> a number of which more is better; 0.01 of it is a point."""
_TIMED_FROM = 256


@dataclass(frozen=True)
class Split:
    """Examples as they are stored: ``inputs`` each (n, ...) of any dtype; ``labels`` (n,) of int64, or the
    targets (n, ...) of another task.
    """

    inputs: Tensors
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: Tensor) -> Split:
        """The examples at these positions, in this order; (k,) int64 -> k examples."""
        return Split(tuple(rows[indices] for rows in self.inputs), self.labels[indices])


@dataclass(frozen=True)
class TaskData:
    """Four splits of one task and how their rows become model inputs.

    ``train`` fits; ``calibration``, drawn from it, sets the ranges of quantisers; ``validation`` steers the
    search and chooses; ``test`` is read once, for the members of the final front.

    Attributes:
        preprocessing: what a user of the exported file does to an input; plain JSON values.
        prepare: raw rows -> model inputs of float32 (or of integers, where a model takes them).
        by_name: the model takes its inputs by their names, not by position.
        loss: of another task than classification with one label per example; None is cross-entropy.
        metric: what is measured instead of top-1 accuracy; None is accuracy.
        free_axes: for each input, by name, its axes of any length (besides the first) and their names.
        augment: (raw rows, indices of the examples in train, view) -> raw rows. A pure function: view ``v``
            of an example is the same whatever shares its batch, so what a teacher says of it can be kept.
    """

    train: Split
    calibration: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    input_names: tuple[str, ...]
    preprocessing: dict[str, Any]
    prepare: Callable[[Tensors], Tensors]
    augment: Callable[[Tensors, Tensor, int], Tensors]
    by_name: bool = False
    free_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    loss: Loss | None = None
    metric: Metric | None = None

    @property
    def axes(self) -> tuple[Mapping[int, str], ...]:
        """The free axes of each input, in order."""
        return tuple(self.free_axes.get(name, {}) for name in self.input_names)

    @cached_property
    def train_digest(self) -> str:
        """SHA-256 of the train examples and their labels."""
        digest = hashlib.sha256()
        for tensor in (*self.train.inputs, self.train.labels):
            hash_tensor_(digest, tensor)
        return digest.hexdigest()

    @cached_property
    def train_lengths(self) -> Tensor | None:
        """Length of each train example along its free axes, (n,); None where all inputs have one size."""
        for rows, axes in zip(self.train.inputs, self.axes, strict=True):
            if axes and not rows.is_floating_point():
                return rows.flatten(1).count_nonzero(dim=1)  # padding is 0 in masks and ids
        return None

    def model_inputs(self, split: Split, indices: Tensor) -> Tensors:
        """Model inputs of the examples at ``indices`` (k,) of a split, unaugmented."""
        return self.prepare(tuple(rows[indices] for rows in split.inputs))

    def training_inputs(self, indices: Tensor, view: int) -> Tensors:
        """Model inputs of the given view of the train examples at ``indices`` (k,)."""
        rows = tuple(rows[indices] for rows in self.train.inputs)
        return self.prepare(self.augment(rows, indices, view))

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[Tensors, Tensor]]:
        """(model inputs, labels) over a whole split in its order; the last batch may be smaller."""
        for indices in torch.split(torch.arange(len(split)), batch_size):
            yield self.model_inputs(split, indices), split.labels[indices]

    def example_inputs(self, batch: int) -> Tensors:
        """Model inputs of ``batch`` train examples, from the first on; they repeat where train is smaller."""
        return self.model_inputs(self.train, torch.arange(batch) % len(self.train))

    def fixed_inputs(self, batch: int, length: int) -> Tensors:
        """Model inputs of ``batch`` train examples whose free axes all have this length: what latency is timed on.

        The longest of the first examples are cut; where they are shorter, they repeat.
        """
        rows = self._longest_first(self.model_inputs(self.train, torch.arange(min(len(self.train), _TIMED_FROM))))
        taken = []
        for name, x in zip(self.input_names, rows, strict=True):
            x = x[torch.arange(batch) % len(x)]
            for axis in self.free_axes.get(name, {}):
                x = x.index_select(axis, torch.arange(length) % x.shape[axis])
            taken.append(x)
        return tuple(taken)

    def _longest_first(self, rows: Tensors) -> Tensors:
        """The same examples, those with the least padding first; in their order where no integers have a free axis."""
        named = zip(self.input_names, rows, strict=True)
        free = {name: x for name, x in named if self.free_axes.get(name) and not x.is_floating_point()}
        if not free:
            return rows
        # Padding is 0 in a mask always, and in ids mostly.
        marks = free[min(free, key=lambda name: "mask" not in name)]
        order = marks.flatten(1).count_nonzero(dim=1).argsort(descending=True, stable=True)
        return tuple(x[order] for x in rows)
