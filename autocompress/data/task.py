"""What a search needs to know of its data. Nothing here assumes images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Split:
    """Examples as they are stored: ``inputs`` each (n, ...) of any dtype, ``labels`` (n,) of int64."""

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
