"""Splits of stored images -> a task: normalisation, augmentation and the draw of calibration images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.augmentation import image_augmentation
from autocompress.data.task import Split, TaskData, Tensors
from autocompress.errors import DataError

PIXEL_MAXIMUM = 255


@dataclass(frozen=True)
class ImageSplits:
    """Images (n, channels, height, width) of uint8, one size throughout."""

    train: Split
    validation: Split
    test: Split


def image_task(
    splits: ImageSplits,
    class_names: tuple[str, ...],
    config: DataSection,
    seed: int,
    preprocessing: dict[str, Any],
) -> TaskData:
    """The task of classifying these images.

    Inputs are pixels / 255, then normalised by ``config.mean`` and ``config.std`` where they are given.

    Args:
        splits: stored images.
        class_names: by label.
        config: normalisation, augmentation and number of calibration images.
        seed: of augmentation and of the draw of calibration images.
        preprocessing: what comes before the normalisation: how an image becomes uint8 of the stored size.

    Raises:
        DataError: mean and std that do not fit the number of channels.
    """
    channels, height, width = splits.train.inputs[0].shape[1:]
    mean, std = _normalisation(config, channels)
    return TaskData(
        train=splits.train,
        calibration=draw_calibration(splits.train, config.calibration_examples, seed),
        validation=splits.validation,
        test=splits.test,
        class_names=class_names,
        input_names=("image",),
        preprocessing=preprocessing
        | {
            "layout": "NCHW",
            "size": [height, width],
            "dtype": "float32",
            "divide_by": PIXEL_MAXIMUM,
            "mean": list(mean),
            "std": list(std),
        },
        prepare=normalise(mean, std),
        augment=image_augmentation(config.augment, config.augment_padding, seed),
    )


def normalise(mean: tuple[float, ...], std: tuple[float, ...]) -> Callable[[Tensors], Tensors]:
    """The ``prepare`` function: uint8 (n, channels, h, w) -> float32 (pixels / 255 - mean) / std."""
    shift = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def prepare(inputs: Tensors) -> Tensors:
        (images,) = inputs
        return ((images.to(torch.float32) / PIXEL_MAXIMUM).sub_(shift).div_(scale),)

    return prepare


def draw_calibration(train: Split, examples: int, seed: int) -> Split:
    """``examples`` rows of train (all of them, where there are fewer), drawn without replacement."""
    generator = torch.Generator().manual_seed(seed)
    drawn: Tensor = torch.randperm(len(train), generator=generator)[:examples]
    return train.take(drawn.sort().values)


def _normalisation(config: DataSection, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if config.mean is None or config.std is None:
        return (0.0,) * channels, (1.0,) * channels
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) != channels:
            raise DataError(
                f"data.{name} has one number per channel; the images have {channels}, it has {len(values)}; "
                f"give {channels}"
            )
    return config.mean, config.std
