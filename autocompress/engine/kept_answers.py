"""The teacher's answers on disk, so that a run that goes on, and other processes of it, need not ask again."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autocompress.compression.distillation import Acceleration, Table, unknown
from autocompress.data.task import TaskData
from autocompress.file_lock import exclusive
from autocompress.weights import hash_tensor_, weights_digest
from autocompress.whole_file import written_whole

SEEN_EXAMPLES = 64
"""Of each view, by which two sets of views are told apart."""


def answers_folder(baseline: Path, base: nn.Module, data: TaskData, views: int, acceleration: Acceleration) -> Path:
    """Where the answers of this base to these views of these examples lie; another name for other answers."""
    digest = hashlib.sha256(f"{weights_digest(base)} {data.train_digest} {asdict(acceleration)}".encode())
    rows = torch.arange(min(SEEN_EXAMPLES, len(data.train)))
    for view in range(views):
        for inputs in data.training_inputs(rows, view):
            hash_tensor_(digest, inputs)
    return baseline / f"answers_{digest.hexdigest()[:16]}"


def kept_answers(folder: Path) -> Table:
    """Tables that are files of this folder, mapped into memory: what one process writes, all others read.

    A table is made whole, with nothing known, so that a full disk shows at once. It survives its writers, and a
    power cut leaves rows that are not wholly known.
    """

    def table(view: int, shape: tuple[int, int]) -> Tensor:
        folder.mkdir(exist_ok=True)
        path = folder / f"{view}.npy"
        with exclusive(folder / "lock"):
            known = _read(path, shape)
            if known is None:
                with written_whole(path) as file:
                    np.save(file, unknown(view, shape).numpy(), allow_pickle=False)
                known = _read(path, shape)
        assert known is not None
        return torch.from_numpy(known)

    return table


def _read(path: Path, shape: tuple[int, int]) -> NDArray[np.float16] | None:
    """The mapped table; None where there is none, or another or a damaged one."""
    try:
        # a file that is cut short fails here; "r+" would lengthen it by zeros
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (FileNotFoundError, ValueError, EOFError):
        return None
    is_same = found.shape == shape and found.dtype == np.float16
    return np.load(path, mmap_mode="r+", allow_pickle=False) if is_same else None
