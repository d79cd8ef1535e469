"""The frozen decision that a candidate is built from.

All sampling ends in a :class:`Plan`; from there on nothing knows of Optuna. A plan survives a JSON
round trip, so a candidate can be built again from its file alone.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Precision(StrEnum):
    """How one layer's weights and input activations are stored and computed.

    ``w<b>`` stores weights in b bits and computes in float32; ``w<b>a8`` feeds the runtime's integer
    kernels with 8-bit activations whose range is fixed by calibration; ``w<b>a8_dynamic`` finds the range of
    each input when it arrives. Weights of 7 bits take the room of 8: they are for processors whose integer kernels
    saturate with 8 (:mod:`autocompress.deploy.saturation`).
    """

    FLOAT32 = "float32"
    W8 = "w8"
    W6 = "w6"
    W4 = "w4"
    W3 = "w3"
    W2 = "w2"
    W8A8 = "w8a8"
    W7A8 = "w7a8"
    W6A8 = "w6a8"
    W4A8 = "w4a8"
    W3A8 = "w3a8"
    W2A8 = "w2a8"
    W8A8_DYNAMIC = "w8a8_dynamic"
    W7A8_DYNAMIC = "w7a8_dynamic"
    W6A8_DYNAMIC = "w6a8_dynamic"
    W4A8_DYNAMIC = "w4a8_dynamic"
    W3A8_DYNAMIC = "w3a8_dynamic"
    W2A8_DYNAMIC = "w2a8_dynamic"

    @property
    def weight_bits(self) -> int | None:
        """Bits of a weight's grid; None for float32."""
        return None if self is Precision.FLOAT32 else int(self.value[1])

    @property
    def stored_bits(self) -> int:
        """Bits that a weight takes in a file."""
        if self.weight_bits is None:
            return 32
        return 8 if self.weight_bits == 7 else self.weight_bits

    @property
    def integer_activations(self) -> bool:
        """Whether integer kernels run, on an input that is quantised to 8 bits."""
        return "a8" in self.value

    @property
    def dynamic(self) -> bool:
        """Whether the input's range is found when it arrives."""
        return self.value.endswith("_dynamic")

    def for_layer(self, kind: str) -> Precision:
        """The nearest precision that such a layer has in the runtime.

        No convolution finds the range of its input as it arrives, and a table of embeddings computes nothing.
        """
        if kind == "embedding":
            return Precision(self.value.partition("a8")[0].replace("w7", "w8"))
        return Precision(self.value.removesuffix("_dynamic")) if kind == "convolution" else self

    def without_saturation(self) -> Precision:
        """The nearest precision with which integer kernels are exact on any processor."""
        return Precision(self.value.replace("w8a8", "w7a8"))


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArchitectureSpec(_Spec):
    """Which network is built.

    ``family`` is ``base`` (the user's network, shrunken) or ``space`` (a member of the model space).
    ``choices`` are the labelled choices of the model space; ``dropped_blocks`` the blocks of the base
    that are replaced by an identity.
    """

    family: str = "base"
    choices: dict[str, Any] = Field(default_factory=dict)
    dropped_blocks: tuple[str, ...] = ()


class PruningSpec(_Spec):
    """Pruning ratio in [0, 1) of each channel group, keyed by the group's root layer."""

    ratios: dict[str, float] = Field(default_factory=dict)


class DistillationSpec(_Spec):
    """Hinton et al. 2015, section 2, with a hint loss after Romero et al. 2015 (FitNets).

    ``alpha`` weighs the teacher's softened outputs against the hard labels, ``hint_weight`` the
    distance between the features that enter the classifiers, ``hidden_weight`` the distance between what
    the blocks put out (Jiao et al. 2020, TinyBERT), ``relation_weight`` the divergence of the attention
    relations of the last block (Wang et al. 2021, MiniLMv2).
    """

    alpha: float = Field(default=0.7, ge=0.0, le=1.0)
    temperature: float = Field(default=4.0, gt=0.0)
    hint_weight: float = Field(default=0.0, ge=0.0)
    hidden_weight: float = Field(default=0.0, ge=0.0)
    relation_weight: float = Field(default=0.0, ge=0.0)

    @property
    def asks_teacher(self) -> bool:
        """Whether any term has a part for the teacher; else a student learns from labels alone."""
        return any(self.model_dump(exclude={"temperature"}).values())


class QuantizationSpec(_Spec):
    """Precision of every convolution and linear layer of the network as built."""

    precisions: dict[str, Precision] = Field(default_factory=dict)


class TrainingSpec(_Spec):
    """Training budget in optimiser steps; 0 means calibration only.

    ``start`` is the SHA-256 of the checkpoint the training starts from (the base's weights, or the
    float weights of the trial that is continued). ``learning_rate`` is the peak rate; None for that of the
    study for what starts as this family does. ``quantized_fraction`` is the last part of the steps that has fake
    quantisation; None for that of the study.
    """

    steps: int = Field(default=0, ge=0)
    start: str = ""
    learning_rate: float | None = Field(default=None, gt=0)
    quantized_fraction: float | None = Field(default=None, ge=0, le=1)


class Plan(_Spec):
    """Everything that decides a candidate's file, given the data and the starting checkpoint."""

    architecture: ArchitectureSpec = ArchitectureSpec()
    pruning: PruningSpec = PruningSpec()
    distillation: DistillationSpec = DistillationSpec()
    quantization: QuantizationSpec = QuantizationSpec()
    training: TrainingSpec = TrainingSpec()
    seed: int = 0

    @property
    def changes_nothing(self) -> bool:
        """Whether the plan's file is the baseline's."""
        precisions = set(self.quantization.precisions.values())
        decided = (self.architecture != ArchitectureSpec(), any(self.pruning.ratios.values()), self.training.steps > 0)
        return not any(decided) and precisions <= {Precision.FLOAT32}

    @property
    def network(self) -> str:
        """What makes the plan's float network, as JSON."""
        return self.model_dump_json(include={"architecture", "pruning"})

    @property
    def decisions(self) -> str:
        """What makes the plan's file, but for its training, as JSON."""
        return self.model_dump_json(include={"architecture", "pruning", "quantization"})
