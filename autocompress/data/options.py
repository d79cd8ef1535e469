"""Which keys of ``[data]`` a source takes: one that would have no effect is refused."""

from __future__ import annotations

from autocompress.config import DataSection
from autocompress.errors import DataError

FUNCTION = "function"
_IMAGES = ("sklearn", "imagefolder", "torchvision", "hf")
_TABLES = ("text", "hf")
_TAKEN_BY = {
    "arguments": ("torchvision", FUNCTION),
    "validation": ("text",),
    "test": ("text",),
    "text_columns": _TABLES,
    "label_column": _TABLES,
    "max_length": _TABLES,
    "validation_longest": _TABLES,
    "exclude_overlap": _TABLES,
    "image_size": _IMAGES,
}
_OF_IMAGES = ("image_size", "mean", "std", "augment", "augment_padding")
_OF_TEXTS = ("text_columns", "max_length", "validation_longest", "exclude_overlap")


def check_options(config: DataSection, kind: str) -> None:
    """Each key that is set has an effect on a source of this kind.

    Raises:
        DataError: naming the key and the sources that take it.
    """
    for key, kinds in _TAKEN_BY.items():
        if kind not in kinds and _is_set(config, key):
            takers = " or ".join("a function" if taker == FUNCTION else f"{taker}:" for taker in kinds)
            raise DataError(f"data.{key} goes with the source {takers}; data.source is {config.source!r}; remove it")


def refuse_image_options(config: DataSection, what: str) -> None:
    """For a source that turns out to hold no images.

    Raises:
        DataError: an option for images is set.
    """
    _refuse(config, _OF_IMAGES, "images", what)


def refuse_text_options(config: DataSection, what: str) -> None:
    """For a source that turns out to hold no texts.

    Raises:
        DataError: an option for texts is set.
    """
    _refuse(config, _OF_TEXTS, "texts", what)


def _refuse(config: DataSection, keys: tuple[str, ...], what_for: str, what: str) -> None:
    for key in keys:
        if _is_set(config, key):
            raise DataError(f"data.{key} is for {what_for}; {config.source!r} gives {what}; remove it")


def _is_set(config: DataSection, key: str) -> bool:
    """By value: a study that was written out names every key."""
    return bool(getattr(config, key) != DataSection.model_fields[key].get_default(call_default_factory=True))
