"""scikit-learn's embedded digits: 1,797 grey images of 8x8 pixels, ten classes, no download.

Alpaydin and Kaynak 1998, UCI "Optical Recognition of Handwritten Digits" (its test set).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from autocompress.config import DataSection
from autocompress.data.images import PIXEL_MAXIMUM, image_task
from autocompress.data.splits import complete
from autocompress.data.task import Split, TaskData
from autocompress.errors import DataError

DEFAULT_SIZE = 32
_GREY_MAXIMUM = 16
_SCALE = PIXEL_MAXIMUM / _GREY_MAXIMUM


def load_digits(name: str, config: DataSection, seed: int, classification: bool = True) -> TaskData:
    """``sklearn:digits``: one channel, upscaled bilinearly to ``image_size`` (default 32), stratified splits.

    Labels are classes whatever ``classification`` says.

    Raises:
        DataError: another name than ``digits``.
    """
    if name != "digits":
        raise DataError(f"scikit-learn's embedded images are digits; got sklearn:{name}; write sklearn:digits")
    from sklearn import datasets  # a second to import

    digits = datasets.load_digits()
    size = config.image_size or DEFAULT_SIZE
    images = upscaled(torch.from_numpy(digits.images), size)
    names = tuple(str(label) for label in digits.target_names)
    whole = Split((images,), torch.from_numpy(digits.target).to(torch.int64))
    return image_task(
        complete({"train": whole}, names, config, seed),
        class_names=names,
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
