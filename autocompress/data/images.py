"""Splits of stored images -> a task: pixels, their normalisation and augmentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from autocompress.config import DataSection
from autocompress.data.augmentation import image_augmentation
from autocompress.data.splits import Splits, draw_calibration
from autocompress.data.task import TaskData, Tensors
from autocompress.errors import DataError

PIXEL_MAXIMUM = 255


def image_task(
    splits: Splits,
    class_names: tuple[str, ...],
    config: DataSection,
    seed: int,
    preprocessing: dict[str, Any],
    input_name: str = "image",
    by_name: bool = False,
) -> TaskData:
    """The task of classifying these images.

    Inputs are pixels / 255, then normalised by ``config.mean`` and ``config.std`` where they are given.

    Args:
        splits: images (n, channels, height, width) of uint8, one size throughout.
        class_names: by label.
        config: normalisation, augmentation and number of calibration images.
        seed: of augmentation and of the draw of calibration images.
        preprocessing: what comes before the normalisation: how an image becomes uint8 of the stored size.
        input_name: of the model's input.
        by_name: the model takes it by this name.

    Raises:
        DataError: mean and std that do not fit the number of channels.
    """
    channels, height, width = splits.train.inputs[0].shape[1:]
    mean, std = normalisation(config, channels)
    return TaskData(
        train=splits.train,
        calibration=draw_calibration(splits.train, config.calibration_examples, seed),
        validation=splits.validation,
        test=splits.test,
        class_names=class_names,
        input_names=(input_name,),
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
        by_name=by_name,
    )


def normalise(
    mean: tuple[float, ...], std: tuple[float, ...], divide_by: float = PIXEL_MAXIMUM
) -> Callable[[Tensors], Tensors]:
    """The ``prepare`` function: any (n, channels, h, w) -> float32 (pixels / divide_by - mean) / std."""
    shift = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
    scale = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def prepare(inputs: Tensors) -> Tensors:
        (images,) = inputs
        return ((images.to(torch.float32) / divide_by).sub_(shift).div_(scale),)

    return prepare


def normalisation(config: DataSection, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) of the configuration, or zeros and ones.

    Raises:
        DataError: not one number per channel.
    """
    if config.mean is None or config.std is None:
        return (0.0,) * channels, (1.0,) * channels
    for name, values in (("mean", config.mean), ("std", config.std)):
        if len(values) != channels:
            raise DataError(
                f"data.{name} has one number per channel; the images have {channels}, it has {len(values)}; "
                f"give {channels}"
            )
    return config.mean, config.std
