"""scikit-learn's embedded digits: 1,797 grey images of 8x8 pixels, ten classes, no download.

Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test set).
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.images import PIXEL_MAXIMUM, ImageSplits, image_task
from autocompress.data.task import Split, TaskData
from autocompress.errors import DataError

DEFAULT_SIZE = 32
_GREY_MAXIMUM = 16
_SCALE = PIXEL_MAXIMUM / _GREY_MAXIMUM


def load_digits(name: str, config: DataSection, seed: int) -> TaskData:
    """``sklearn:digits``: one channel, upscaled bilinearly to ``image_size`` (default 32), stratified splits.

    Raises:
        DataError: another name than ``digits``.
    """
    if name != "digits":
        raise DataError(f"scikit-learn's embedded images are digits; got sklearn:{name}; write sklearn:digits")
    from sklearn import datasets  # a second to import

    digits = datasets.load_digits()
    size = config.image_size or DEFAULT_SIZE
    images = upscaled(torch.from_numpy(digits.images), size)
    return image_task(
        _split(images, digits.target, config, seed),
        class_names=tuple(str(label) for label in digits.target_names),
        config=config,
        seed=seed,
        preprocessing={
            "channels": "grey",
            "resize": "bilinear",
            "from": f"8x8 grey levels 0...{_GREY_MAXIMUM}, resized, times {_SCALE}, rounded",
        },
    )


def upscaled(grey: Tensor, size: int) -> Tensor:
    """(n, 8, 8) grey levels 0...16 -> (n, 1, size, size) of uint8 0...255."""
    resized = F.interpolate(grey[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)
    return (resized * _SCALE).round_().to(torch.uint8)


def _split(images: Tensor, target: NDArray[np.int64], config: DataSection, seed: int) -> ImageSplits:
    total = len(target)
    rest, test = _hold_out(np.arange(total), target, config.test_fraction, "test_fraction", seed)
    train, validation = _hold_out(rest, target, config.validation_fraction, "validation_fraction", seed)
    whole = Split((images,), torch.from_numpy(target).to(torch.int64))
    return ImageSplits(*(whole.take(torch.from_numpy(part)) for part in (train, validation, test)))


def _hold_out(
    positions: NDArray[np.int64], target: NDArray[np.int64], fraction: float, option: str, seed: int
) -> list[NDArray[np.int64]]:
    """[what stays, what is held out]: that fraction of all the data, in equal parts of each class."""
    from sklearn.model_selection import train_test_split

    count, classes = round(len(target) * fraction), len(np.unique(target))
    if count < classes:
        raise DataError(
            f"each split has an example of each of {classes} classes; data.{option} = {fraction} of "
            f"{len(target)} gives {count}; raise the fraction"
        )
    parts = train_test_split(positions, test_size=count, stratify=target[positions], random_state=seed)
    return [np.sort(part) for part in parts]
