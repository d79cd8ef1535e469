"""``[data]`` of a study file -> the task's data.

A source is ``KIND:NAME``; each kind has one loader, in a file of its own, listed here.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable

from autocompress.config import DataSection
from autocompress.data.digits import load_digits
from autocompress.data.image_folder import load_image_folder
from autocompress.data.task import TaskData
from autocompress.errors import DataError

_LOADERS: dict[str, Callable[[str, DataSection, int], TaskData]] = {
    "sklearn": load_digits,
    "imagefolder": load_image_folder,
}
_FORMS = {"sklearn": "sklearn:digits", "imagefolder": "imagefolder:DIR"}


def load_data(config: DataSection, seed: int) -> TaskData:
    """Load what ``config.source`` names.

    Args:
        config: the ``[data]`` section, its paths resolved.
        seed: decides random splits, the calibration examples and the augmentation.

    Raises:
        DataError: unknown source, or data that are missing, unreadable or do not fit each other.
    """
    kind, _, name = config.source.partition(":")
    if kind not in _LOADERS or not name:
        near = difflib.get_close_matches(kind, _LOADERS, n=1)
        hint = f"did you mean {_FORMS[near[0]]}?" if near else "use one of these"
        raise DataError(f"data.source is {' or '.join(_FORMS.values())}; got {config.source!r}; {hint}")
    return _LOADERS[kind](name, config, seed)
